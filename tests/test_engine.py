"""Which layout a batch size is compiled for, by the memory of the device; and what is dropped."""

import gc
import threading
from functools import partial
from itertools import count, islice
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny_experiment

from batchgrow import update
from batchgrow.data.feed import make_feed
from batchgrow.devices import bytes_of, memory_needed
from batchgrow.engine import Engine
from batchgrow.layout import Layout, make_mesh
from batchgrow.plan import Recipe, curves, decay
from batchgrow.update import UpdateCompiler

GIB = 2**30
FIRST = tiny_experiment()


class FakeCompiler(UpdateCompiler):
    """Compiles nothing; its executables need 1 GiB for each example of a pass.

    Attributes:
      compiled: the micro-batch sizes that were compiled.
    """

    def __init__(self, limit: int | None, max_microbatch_size: int | None = None, mesh: Any = None):
        experiment = tiny_experiment({"run.max_microbatch_size": max_microbatch_size})
        feed = make_feed(experiment.train_data, 0, "auto")
        super().__init__(experiment, mesh or make_mesh(1), feed, {}, limit)  # type: ignore[arg-type]
        self.compiled: list[int] = []

    def _lowering(self, layout: Layout, max_updates: int) -> Any:
        compile_ = partial(self._compile, layout.microbatch_size)
        return partial(SimpleNamespace, compile=compile_)

    def _compile(self, size: int) -> Any:
        self.compiled.append(size)
        return SimpleNamespace(memory_analysis=lambda: fake_analysis(size))


class RefusingCompiler(FakeCompiler):
    """Refuses what does not fit, as TPU's compiler does."""

    def _compile(self, size: int) -> Any:
        self.compiled.append(size)
        raise jax.errors.JaxRuntimeError(f"RESOURCE_EXHAUSTED: {self.reason.format(size)}")

    reason = "ran out of memory in hbm"


def fake_analysis(size: int) -> SimpleNamespace:
    """Arguments and half of the output share their memory."""
    return SimpleNamespace(
        argument_size_in_bytes=GIB,
        output_size_in_bytes=2 * GIB,
        alias_size_in_bytes=GIB,
        temp_size_in_bytes=(size - 3) * GIB,
        generated_code_size_in_bytes=GIB,
    )


def test_the_largest_pass_that_fits_is_taken():
    """128 examples in ghosts of 16, and 45 of 50 GiB to be used: 4 passes of 32."""
    compiler = FakeCompiler(50 * GIB)
    layout = compiler.fit(128).layout
    assert (layout.num_microbatches, layout.microbatch_size) == (4, 32)
    assert compiler.compiled == [128, 32]  # 128 needs 128 GiB, so 64 needs 64 or more


def test_a_tenth_of_the_memory_is_left_free():
    # 32 would fit, but not into 31.5
    assert FakeCompiler(35 * GIB).fit(128).layout.microbatch_size == 16


def test_too_little_memory_for_one_ghost():
    message = "batch size 128: a micro-batch of 16 examples needs 16.0 GiB, .* has 10.0 GiB"
    with pytest.raises(MemoryError, match=message):
        FakeCompiler(10 * GIB).fit(128)


@pytest.mark.parametrize(
    ("limit", "compiled"), [(None, [128, 64, 32, 16]), (64, [64])], ids=["by memory", "set"]
)
def test_a_compiler_that_refuses_every_layout(limit, compiled):
    size = compiled[-1]
    message = f"128: a micro-batch of {size} examples needs too much memory, .* has 10.0 GiB"
    compiler = RefusingCompiler(10 * GIB, limit)
    with pytest.raises(MemoryError, match=message):
        compiler.fit(128)
    assert compiler.compiled == compiled


def test_a_refusal_with_a_number_spares_what_cannot_fit(monkeypatch):
    monkeypatch.setattr(RefusingCompiler, "reason", "Used {}.5G of 15.75G hbm. Exceeded")
    compiler = RefusingCompiler(40 * GIB)
    with pytest.raises(MemoryError, match="a micro-batch of 16 examples needs 16.5 GiB"):
        compiler.fit(128)
    assert compiler.compiled == [128, 32, 16]


def test_processes_agree_on_the_memory_of_the_least_device(monkeypatch):
    """Also above 2 GiB, although JAX gathers 32 bits of a whole number."""
    mesh = make_mesh(1)
    monkeypatch.setattr(update, "memory_limit", lambda device: 80 * GIB + 5)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(
        update.multihost_utils,
        "process_allgather",
        lambda x: np.stack([jnp.asarray(x), jnp.asarray(x) // 2]),  # as on the devices
    )
    assert update._least_memory_limit(mesh) == 40 * GIB


def test_a_limit_that_was_set_is_taken():
    compiler = FakeCompiler(10 * GIB, 64)
    assert compiler.fit(128).layout.microbatch_size == 64
    assert compiler.compiled == [64]


@pytest.mark.parametrize(("platform", "size"), [("cpu", 32), ("gpu", 4096)])
def test_unknown_memory_has_a_default(platform, size):
    device = SimpleNamespace(platform=platform, memory_stats=lambda: None)
    mesh = SimpleNamespace(size=1, devices=np.array([device]), local_devices=[device])
    compiler = FakeCompiler(None, mesh=mesh)
    assert compiler.layouts(size)[0].num_microbatches == 1
    assert compiler.layouts(2 * size)[0].num_microbatches == 2


def test_release_frees_the_executable():
    """In XLA's own list: neither JAX's caches nor a reference cycle keep it."""
    client = jax.devices()[0].client
    for thread in threading.enumerate():
        if thread.name.startswith("compile"):
            thread.join(60)  # a compilation that an earlier test has left
    gc.collect()

    def live() -> int:
        return len(client.live_executables())

    with Engine(tiny_experiment(), make_mesh(1)) as engine:
        before = live()
        for size in (32, 64):
            engine.updates.get(size)
        engine.evaluation().result()
        assert live() == before + 3
        engine.prepare(64, [64])
        assert live() == before + 2
        engine.prepare(128, [])
        assert live() == before + 1
    assert live() == before


def test_an_evaluation_is_split_until_it_fits():
    """The metrics do not depend on it; and what else is in memory counts."""
    experiment = tiny_experiment({"run.eval_batch_size": 200, "run.input": "streamed"})
    mesh = make_mesh(2)
    with Engine(experiment, mesh) as engine:
        executable = engine.evaluation().result()
        expected = engine.evaluate(executable, engine.initial_state())
        need = memory_needed(executable)
        beside = bytes_of(engine.state) - bytes_of(engine.state.evaluated)
    assert need and beside > 0
    for limit, size in ((need + beside, 200), (need, 100)):
        with Engine(experiment, mesh, -(-limit * 10 // 9)) as engine:
            executable = engine.evaluation().result()
            assert engine._test_batches.batch_size == size
            metrics = engine.evaluate(executable, engine.initial_state())
            assert metrics == pytest.approx(expected)
    with Engine(experiment, mesh, 2**10) as engine:
        with pytest.raises(MemoryError, match="evaluation of 2 examples, the least for run.eval_b"):
            engine.evaluation().result()


def test_a_test_set_on_the_devices_counts_as_memory_in_use():
    experiment = tiny_experiment({"run.eval_batch_size": 30})
    with Engine(experiment, make_mesh(1)) as engine:
        need = memory_needed(engine.compiler.fit(16).executable)
    assert need
    held = 360 * (8 * 8 + 4 + 4)  # pixels, labels and masks of the test set
    with Engine(experiment, make_mesh(1), (need + held + 10) * 10 // 9) as engine:
        engine.compiler.fit(16)
    with Engine(experiment, make_mesh(1), (need + held - 10) * 10 // 9) as engine:
        with pytest.raises(MemoryError, match="batch size 16: .* needs 0.0 GiB"):
            engine.compiler.fit(16)


def test_an_update_takes_the_place_of_the_state_in_memory():
    experiment = tiny_experiment()
    with Engine(experiment, make_mesh(1)) as engine:
        program, state = engine.updates.get(32), engine.initial_state()
        points = list(islice(experiment.plan.points(), 1))  # type: ignore[attr-defined]
        program(state, engine.feed.batch(program.dispatch_positions(points)), points)
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))


def test_the_seed_decides_the_parameters_and_what_an_update_draws():
    """Equal parameters and equal examples, augmented by each seed, give other parameters."""
    params = []
    for seed in (0, 0, 3):
        experiment = tiny_experiment({"task.augment": "crop_flip", "seed": seed})
        with Engine(experiment, make_mesh(1)) as engine, Engine(FIRST, make_mesh(1)) as first:
            program = engine.updates.get(32)
            points = list(islice(experiment.plan.points(), 1))  # type: ignore[attr-defined]
            batch = first.feed.batch(program.dispatch_positions(points))
            start = engine.initial_state().params
            after = program(first.initial_state(), batch, points)
            params.append(jax.tree.map(np.array, (start, after.params)))
    jax.tree.map(np.testing.assert_array_equal, params[0], params[1])
    for part in (0, 1):
        kernels = [found[part]["Dense_0"]["kernel"] for found in params]
        assert (kernels[0] != kernels[2]).any()


def test_each_batch_size_is_compiled_with_its_optimizer():
    asked: list[int] = []
    optimizer = FIRST.optimizer_at(32)
    experiment = tiny_experiment(optimizer=lambda size: asked.append(size) or optimizer)
    with Engine(experiment, make_mesh(1)) as engine:
        engine.updates.get(128)
    assert asked == [32, 128]  # of the recipe, for the state; of the update


def test_the_host_is_at_most_two_dispatches_ahead():
    waited: list[int] = []
    numbers = count()

    def call(state: Any, *_: Any) -> Any:
        number = next(numbers)
        return state, SimpleNamespace(block_until_ready=lambda: waited.append(number))

    program = update.UpdateProgram(call, Layout(4, 1, 1), 1, mesh=make_mesh(1), arrays=())
    points: Any = [SimpleNamespace(learning_rate=0.1, momentum=0.9)]
    for _ in range(5):
        program({}, {}, points)  # type: ignore[arg-type]
    assert waited == [0, 1, 2]


def test_what_is_compiled_is_read_ahead_as_far_as_there_is_room():
    experiment = tiny_experiment()
    asked: list[np.ndarray] = []

    def read_ahead(positions: np.ndarray) -> bool:
        asked.append(positions.ravel())
        return len(asked) != 4  # The fourth finds no room.

    with Engine(experiment, make_mesh(1)) as engine:
        feed: Any = engine.feed
        feed.read_ahead = read_ahead
        known = experiment.plan.known()
        engine.read_ahead(known, 64)
        assert asked == []  # Nothing is compiled.
        engine.updates.get(32)
        engine.read_ahead(known, 64)
        np.testing.assert_array_equal(np.concatenate(asked), np.arange(64, 64 + 4 * 32))
        engine.read_ahead(known, 64)
        np.testing.assert_array_equal(asked[4], asked[3])  # asked again


def test_more_examples_than_positions_are_refused():
    recipe = Recipe(2**20, 0.9, curves.constant(0.1), num_examples=2**20, num_epochs=4096)
    with pytest.raises(ValueError, match="stream positions end at 4,294,967,295"):
        tiny_experiment(plan=decay(recipe))


def test_the_first_dispatch_of_a_size_runs_without_a_compilation_beside_it():
    with Engine(tiny_experiment(), make_mesh(1)) as engine:
        engine.prepare(16, [16, 32, 64])
        assert engine.updates.keys() == set()
        engine.prepare(16, [16, 32, 64])
        assert engine.updates.keys() == {32}
        engine.prepare(32, [64])  # the only dispatch of its segment
        assert engine.updates.keys() == {32, 64}


def test_memory_needed_counts_arguments_and_output():
    executable = jax.jit(lambda x: x + 1).lower(np.zeros(1000, np.float32)).compile()
    assert 8000 <= (memory_needed(executable) or 0) < 16000
    assert memory_needed(SimpleNamespace(memory_analysis=lambda: None)) is None


@pytest.mark.parametrize(
    ("changes", "most"),
    [
        ({}, {16: 16, 128: 16, 512: 4, 4096: 1}),
        ({"run.updates_per_dispatch": 3}, {16: 3, 4096: 3}),
        ({"run.input": "streamed"}, {16: 1, 4096: 1}),
    ],
)
def test_updates_of_one_call(changes, most):
    with Engine(tiny_experiment(changes), make_mesh(1)) as engine:
        assert {size: engine.compiler.max_updates(size) for size in most} == most
