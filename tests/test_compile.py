"""Compilation in the background: order, errors, times, and the persistent cache."""

import threading
import time
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import pytest

from batchgrow import executables
from batchgrow.compile import CompileAhead, enable_compilation_cache


@dataclass
class FakeCompiler:
    """Lowers and compiles nothing, when it is allowed to, and counts."""

    def __post_init__(self):
        self.may_compile = threading.Event()
        self.lowered: list[int] = []
        self.compiled: list[int] = []
        self.threads: set[int] = set()

    def lower(self, key: int) -> Any:
        self.lowered.append(key)
        if key < 0:
            raise ValueError(f"no batch of {key}")
        return _Lowered(self, key)


@dataclass
class _Lowered:
    compiler: FakeCompiler
    key: int

    def compile(self) -> str:
        assert self.compiler.may_compile.wait(30)
        self.compiler.threads.add(threading.get_ident())
        self.compiler.compiled.append(self.key)
        return f"executable {self.key}"


def test_compiles_in_the_background_and_once():
    compiler = FakeCompiler()
    with CompileAhead(compiler.lower) as sizes:
        sizes.start(4)  # returns although the compiler is not let go
        assert not sizes.ready(4)
        compiler.may_compile.set()
        assert sizes.get(4) == "executable 4"
        assert sizes.ready(4)
        sizes.start(4)
        assert sizes.get(4) == "executable 4"
    assert compiler.lowered == compiler.compiled == [4]
    assert threading.get_ident() not in compiler.threads


def test_get_compiles_what_nobody_started():
    compiler = FakeCompiler()
    compiler.may_compile.set()
    with CompileAhead(compiler.lower) as sizes:
        assert sizes.get(8) == "executable 8"


def test_get_begins_what_follows_in_the_order():
    compiler = FakeCompiler()
    compiler.may_compile.set()
    with CompileAhead(compiler.lower, order=(4, 8, 16)) as sizes:
        assert list(sizes.times) == []  # nothing is compiled that nobody asks for
        for _ in range(3):
            sizes.get(4)
        assert list(sizes.times) == [4, 8]
        assert sizes.get(8) == "executable 8"
        sizes.get(16)
    assert compiler.lowered == [4, 8, 16]


def test_errors_of_the_background_surface_in_get():
    compiler = FakeCompiler()
    compiler.may_compile.set()
    with CompileAhead(compiler.lower) as sizes:
        sizes.start(-1)
        with pytest.raises(ValueError, match="no batch of -1"):
            sizes.get(-1)
        assert sizes.get(2) == "executable 2"  # and the others go on


def test_release_drops_the_executable():
    compiler = FakeCompiler()
    compiler.may_compile.set()
    with CompileAhead(compiler.lower) as sizes:
        sizes.get(4)
        sizes.release(4)
        assert not sizes.ready(4)
        sizes.get(4)
    assert compiler.compiled == [4, 4]


def test_close_does_not_wait_for_a_compilation():
    compiler = FakeCompiler()
    started = time.perf_counter()
    with CompileAhead(compiler.lower) as sizes:
        sizes.start(4)
        sizes.start(8)
    assert time.perf_counter() - started < 10  # the compiler would hold out for 30
    compiler.may_compile.set()
    assert 8 not in compiler.lowered


def test_waiting_is_counted_only_where_somebody_waited():
    compiler = FakeCompiler()
    with CompileAhead(compiler.lower) as sizes:
        threading.Timer(0.2, compiler.may_compile.set).start()
        sizes.get(4)
        sizes.start(8)
        while not sizes.ready(8):
            time.sleep(0.01)
        sizes.get(8)
        waited, prompt = sizes.times[4], sizes.times[8]
    assert waited.compile_seconds > 0.15 and waited.waited_seconds > 0.15
    assert prompt.waited_seconds < 0.05


def test_second_compilation_of_a_program_comes_from_the_cache():
    settings = {"jax_persistent_cache_min_compile_time_secs": 0.0}
    before = {name: getattr(jax.config, name) for name in settings}
    salt = time.time_ns() % 2**30  # a program that no cache has seen

    def lower(_):
        return jax.jit(lambda x: x * 2 + salt).lower(np.zeros(3, np.int32))

    for name, value in settings.items():
        jax.config.update(name, value)
    try:
        with CompileAhead(lower) as programs:
            for attempt in ("first", "second"):
                assert programs.get(attempt)(np.ones(3, np.int32)).tolist() == [salt + 2] * 3
            assert not programs.times["first"].cache_hit
            assert programs.times["second"].cache_hit
            assert programs.times["first"].lower_seconds > 0
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


@pytest.fixture
def no_cache():
    """JAX without a cache folder of its own, as on a user's machine."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def test_cache_lies_where_it_was_asked_for(no_cache, tmp_path):
    wanted = str(tmp_path / "xla")
    assert enable_compilation_cache(wanted) == wanted == jax.config.jax_compilation_cache_dir
    # JAX's own setting, here the one just made, goes before the field.
    assert enable_compilation_cache(str(tmp_path / "other")) == wanted


def test_cache_lies_in_the_users_cache_by_default(no_cache, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert enable_compilation_cache("") == str(tmp_path / "batchgrow" / "xla")
    assert (tmp_path / "batchgrow" / "xla").is_dir()


def test_a_cache_that_cannot_be_written_is_left_out(no_cache, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    assert enable_compilation_cache(str(tmp_path / "file" / "xla")) == ""
    assert jax.config.jax_compilation_cache_dir is None
    assert "no compilation cache" in caplog.text


def test_hits_of_other_threads_are_not_counted():
    with executables.cache_hits() as hits:
        other = threading.Thread(
            target=lambda: jax.monitoring.record_event("/jax/compilation_cache/cache_hits")
        )
        other.start()
        other.join()
        assert hits == []
        jax.monitoring.record_event("/jax/compilation_cache/cache_hits")
        assert len(hits) == 1
