"""Which layout a batch size is compiled for, by the memory of the device."""

import logging
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from tiny import TinyNet, make_config

from batchgrow import models, parallel, programs
from batchgrow.data import feed as feeds
from batchgrow.data.sources import load_images
from batchgrow.devices import memory_needed
from batchgrow.programs import Programs, split_evenly
from batchgrow.train import build

GIB = 2**30


class FakeMap:
    """Compiles nothing; its executables need 1 GiB for each example of a pass."""

    def __init__(self) -> None:
        self.compiled: list[int] = []

    def lower(self, state, batches, *_):
        size = batches["index"].shape[-1]

        def compile():
            self.compiled.append(size)
            return SimpleNamespace(memory_analysis=lambda: fake_analysis(size))

        return SimpleNamespace(compile=compile)


def fake_analysis(size: int) -> SimpleNamespace:
    """Arguments and half of the output share their memory."""
    return SimpleNamespace(
        argument_size_in_bytes=GIB,
        output_size_in_bytes=2 * GIB,
        alias_size_in_bytes=GIB,
        temp_size_in_bytes=(size - 3) * GIB,
        generated_code_size_in_bytes=GIB,
    )


@pytest.fixture
def fake_map(monkeypatch) -> FakeMap:
    fake = FakeMap()
    monkeypatch.setattr(parallel, "map_train", lambda *_: fake)
    monkeypatch.setitem(models.MODELS, "tiny", TinyNet)
    return fake


def make_programs(max_per_device: int | str = "auto") -> Programs:
    config = make_config({"run.max_per_device_batch_size": max_per_device})
    mesh = parallel.make_mesh(1)
    feed = feeds.ResidentFeed(load_images("digits", "train"), seed=0)
    test = split_evenly(next(feeds.padded_batches(load_images("digits", "test"), 100)), mesh)
    return build(config, mesh, 0.9, feed, test)[1]


def give_memory(monkeypatch, limit: int | None) -> None:
    monkeypatch.setattr(programs, "memory_limit", lambda _: limit)


def test_auto_takes_the_largest_pass_that_fits(fake_map, monkeypatch):
    """128 examples in ghosts of 16, and 45 of 50 GiB to be used: 4 passes of 32."""
    give_memory(monkeypatch, 50 * GIB)
    with make_programs() as compiled:
        layout = compiled.train(128).layout
    assert (layout.num_microbatches, layout.microbatch_size) == (4, 32)
    assert fake_map.compiled == [128, 64, 32]


def test_a_tenth_of_the_memory_is_left_free(fake_map, monkeypatch):
    give_memory(monkeypatch, 35 * GIB)  # 32 would fit, but not into 31.5
    with make_programs() as compiled:
        assert compiled.train(128).layout.microbatch_size == 16


def test_too_little_memory_for_one_ghost(fake_map, monkeypatch):
    give_memory(monkeypatch, 10 * GIB)
    message = "batch size 128: a micro-batch of 16 examples needs 16.0 GiB, .* has 10.0 GiB"
    with make_programs() as compiled, pytest.raises(MemoryError, match=message):
        compiled.train(128)


@pytest.mark.parametrize("limit", ["auto", 64])
def test_a_compiler_that_refuses_every_layout(limit, fake_map, monkeypatch):
    """TPU's: it raises where others would hand out an executable that does not fit."""
    give_memory(monkeypatch, 10 * GIB)

    def refuse():
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: ran out of memory in hbm")

    monkeypatch.setattr(fake_map, "lower", lambda *_: SimpleNamespace(compile=refuse))
    message = "batch size 128: a micro-batch of (16|64) examples needs too much memory, .* 10.0 GiB"
    with make_programs(limit) as compiled, pytest.raises(MemoryError, match=message):
        compiled.train(128)


def test_a_limit_that_was_set_is_taken(fake_map, monkeypatch):
    give_memory(monkeypatch, 10 * GIB)
    with make_programs(64) as compiled:
        assert compiled.train(128).layout.microbatch_size == 64
    assert fake_map.compiled == [64]


@pytest.mark.parametrize(("platform", "size"), [("cpu", 32), ("gpu", 4096)])
def test_unknown_memory_has_a_default_and_says_so(platform, size, fake_map, monkeypatch, caplog):
    give_memory(monkeypatch, None)
    with caplog.at_level(logging.INFO), make_programs() as compiled:
        device = SimpleNamespace(platform=platform, device_kind="thing")
        compiled.mesh = SimpleNamespace(size=1, local_devices=[device])  # type: ignore[assignment]
        assert compiled.layouts(size)[0].num_microbatches == 1
        assert caplog.text == ""
        assert compiled.layouts(2 * size)[0].num_microbatches == 2
    assert f"thing does not tell its memory: {size} examples in one pass" in caplog.text
    assert "run.max_per_device_batch_size" in caplog.text


def test_release_frees_the_executable(monkeypatch):
    """In XLA's own list: neither JAX's caches nor a reference cycle keep it."""
    monkeypatch.setitem(models.MODELS, "tiny", TinyNet)
    client = jax.devices()[0].client

    def live() -> int:
        names = [e.hlo_modules()[0].name for e in client.live_executables()]
        return sum("on_device" in name for name in names)

    before = live()
    with make_programs() as compiled:
        for size in (32, 64):
            compiled.train(size)
        compiled.evaluation()
        assert live() == before + 3
        compiled.release(32)
        assert live() == before + 2
        compiled.release(64)
        assert live() == before + 1
    assert live() == before


def test_memory_needed_counts_arguments_and_output():
    executable = jax.jit(lambda x: x + 1).lower(np.zeros(1000, np.float32)).compile()
    assert 8000 <= (memory_needed(executable) or 0) < 16000
    assert memory_needed(SimpleNamespace(memory_analysis=lambda: None)) is None


def test_split_evenly_keeps_the_order():
    mesh = parallel.make_mesh(4)
    split = split_evenly({"label": np.arange(12)}, mesh)["label"]
    np.testing.assert_array_equal(split, np.arange(12).reshape(4, 3))
