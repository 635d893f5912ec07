"""Compilation in the background: order, errors, times, and the persistent cache."""

import threading
import time
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from batchgrow.compile import CompileAhead, cache_hits, enable_compilation_cache


class FakeCompiler:
    """Builds nothing, when it is allowed to, and counts."""

    def __init__(self) -> None:
        self.may_compile = threading.Event()
        self.started: list[int] = []
        self.compiled: list[int] = []
        self.threads: set[int] = set()

    def build(self, key: int) -> str:
        self.started.append(key)
        if key < 0:
            raise ValueError(f"no batch of {key}")
        assert self.may_compile.wait(30)
        self.threads.add(threading.get_ident())
        self.compiled.append(key)
        return f"executable {key}"


def test_compiles_in_the_background_and_once():
    compiler = FakeCompiler()
    with CompileAhead(compiler.build) as sizes:
        sizes.start(4)  # returns although the compiler is not let go
        assert sizes.finished(4) is None and sizes.finished(8) is None
        compiler.may_compile.set()
        assert sizes.get(4) == "executable 4"
        assert sizes.finished(4) == "executable 4"
        sizes.start(4)
        assert sizes.get(4) == "executable 4"
    assert compiler.started == compiler.compiled == [4]
    assert threading.get_ident() not in compiler.threads


def test_get_compiles_what_nobody_started():
    compiler = FakeCompiler()
    compiler.may_compile.set()
    with CompileAhead(compiler.build) as sizes:
        assert sizes.get(8) == "executable 8"


def test_get_begins_what_follows_in_the_order():
    compiler = FakeCompiler()
    compiler.may_compile.set()
    with CompileAhead(compiler.build, order=(4, 8, 16)) as sizes:
        assert list(sizes.times) == []  # nothing is compiled that nobody asks for
        for _ in range(3):
            sizes.get(4)
        assert list(sizes.times) == [4, 8]
        assert sizes.get(8) == "executable 8"
        sizes.get(16)
    assert compiler.started == [4, 8, 16]


def test_a_key_that_comes_again_hides_none_after_it():
    compiler = FakeCompiler()
    compiler.may_compile.set()
    with CompileAhead(compiler.build, order=(64, 16, 64, 128)) as sizes:
        sizes.get(64)
        assert list(sizes.times) == [64, 16]
        for key in (16, 64):
            sizes.get(key)
        assert list(sizes.times) == [64, 16, 128]


def test_errors_of_the_background_surface_in_get():
    compiler = FakeCompiler()
    compiler.may_compile.set()
    with CompileAhead(compiler.build) as sizes:
        sizes.start(-1)
        with pytest.raises(ValueError, match="no batch of -1"):
            sizes.get(-1)
        assert sizes.finished(-1) is None
        assert sizes.get(2) == "executable 2"  # and the others go on


def test_release_drops_the_executable():
    compiler = FakeCompiler()
    compiler.may_compile.set()
    with CompileAhead(compiler.build) as sizes:
        sizes.get(4)
        sizes.release(4)
        assert sizes.finished(4) is None and sizes.keys() == set()
        sizes.get(4)
    assert compiler.compiled == [4, 4]


def test_close_does_not_wait_for_a_compilation():
    compiler = FakeCompiler()
    with CompileAhead(compiler.build) as sizes:
        under_way, waiting = sizes.start(4), sizes.start(8)
        for _ in range(3000):  # half a minute
            if compiler.started == [4]:
                break
            time.sleep(0.01)
    assert not under_way.done() and waiting.cancelled()
    compiler.may_compile.set()
    assert under_way.result() == "executable 4"
    assert compiler.started == [4]


def test_one_pool_serves_several():
    compiler = FakeCompiler()
    compiler.may_compile.set()
    with CompileAhead(compiler.build) as sizes:
        with CompileAhead(compiler.build, pool=sizes.pool) as others:
            assert (sizes.get(4), others.get(4)) == ("executable 4", "executable 4")
        assert sizes.get(8) == "executable 8"  # The pool is still open.
    assert compiler.started == [4, 4, 8] and len(compiler.threads) == 1


def test_waiting_is_counted_only_where_somebody_waited(monkeypatch):
    """By a clock that runs only while something is compiled, one second each time."""
    compiled: list[int] = []
    clock = SimpleNamespace(perf_counter=lambda: len(compiled))
    monkeypatch.setattr("batchgrow.compile.time", clock)
    with CompileAhead(compiled.append) as sizes:
        sizes.get(4)
        sizes.start(8).result()
        sizes.get(8)
        waited, ahead = sizes.times[4], sizes.times[8]
    assert (waited.compile_seconds, waited.waited_seconds) == (1, 1)
    assert (ahead.compile_seconds, ahead.waited_seconds) == (1, 0)


def test_second_compilation_of_a_program_comes_from_the_cache():
    settings = {"jax_persistent_cache_min_compile_time_secs": 0.0}
    before = {name: getattr(jax.config, name) for name in settings}
    salt = time.time_ns() % 2**30  # a program that no cache has seen

    def build(_):
        return jax.jit(lambda x: x * 2 + salt).lower(np.zeros(3, np.int32)).compile()

    for name, value in settings.items():
        jax.config.update(name, value)
    try:
        with CompileAhead(build) as programs:
            for attempt in ("first", "second"):
                assert programs.get(attempt)(np.ones(3, np.int32)).tolist() == [salt + 2] * 3
            assert not programs.times["first"].cache_hit
            assert programs.times["second"].cache_hit
            assert programs.times["first"].compile_seconds > 0
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


@pytest.fixture
def no_cache():
    """JAX without a cache folder of its own, as on a user's machine."""
    names = (
        "jax_compilation_cache_dir",
        "jax_enable_compilation_cache",
        "jax_persistent_cache_min_compile_time_secs",
    )
    before = {name: getattr(jax.config, name) for name in names}
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def compile_anew() -> None:
    """Compiles a program that no cache has, and caches it however short that takes."""
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    salt = time.time_ns() % 2**30
    jax.jit(lambda x: x * 2 + salt).lower(np.zeros(3, np.int32)).compile()


def test_several_processes_with_gpus_have_no_persistent_cache(no_cache, tmp_path, monkeypatch):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    compile_anew()
    before = sorted(tmp_path.iterdir())
    assert before
    with monkeypatch.context() as patched:
        patched.setattr(jax.distributed, "is_initialized", lambda: True)
        patched.setattr(jax, "process_count", lambda: 2)
        patched.setattr(jax, "default_backend", lambda: "gpu")
        assert enable_compilation_cache("a folder") == ""
    compile_anew()
    assert sorted(tmp_path.iterdir()) == before


def test_the_cache_is_where_it_was_asked_for(no_cache, tmp_path):
    """Each call has its own folder, though JAX has used the one before."""
    for name in ("one", "other"):
        wanted = tmp_path / name
        assert enable_compilation_cache(str(wanted)) == str(wanted)
        assert jax.config.jax_compilation_cache_dir == str(wanted)
        compile_anew()
        assert list(wanted.iterdir())


def test_jaxs_own_setting_goes_before_the_field(no_cache, tmp_path):
    own = str(tmp_path / "own")
    jax.config.update("jax_compilation_cache_dir", own)
    for _ in range(2):
        assert enable_compilation_cache(str(tmp_path / "other")) == own


def test_the_cache_is_the_users_by_default(no_cache, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert enable_compilation_cache("") == str(tmp_path / "batchgrow" / "xla")
    assert (tmp_path / "batchgrow" / "xla").is_dir()


def test_a_cache_that_cannot_be_written_is_left_out(no_cache, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    assert enable_compilation_cache(str(tmp_path / "file" / "xla")) == ""
    assert jax.config.jax_compilation_cache_dir is None
    assert "no compilation cache" in caplog.text


def test_hits_of_other_threads_are_not_counted():
    with cache_hits() as hits:
        other = threading.Thread(
            target=lambda: jax.monitoring.record_event("/jax/compilation_cache/cache_hits")
        )
        other.start()
        other.join()
        assert hits == []
        jax.monitoring.record_event("/jax/compilation_cache/cache_hits")
        assert len(hits) == 1
