"""Layouts of a batch on devices, and the same training whatever the layout."""

import itertools

import jax
import numpy as np
import pytest
from tiny import run_in_memory

from batchgrow import parallel
from batchgrow.layout import Layout, choose_layout, layouts, nearest_batch_sizes

SMALL = [(b, d, g) for b in range(1, 49) for d in (1, 2, 3, 4, 8) for g in (1, 4, 6, 16)]


def ghosts_by_device(layout: Layout, ghost: int) -> dict[tuple[int, int], list[int]]:
    """The devices that hold each ghost batch, by micro-batch and ghost."""
    places = layout.split(np.arange(layout.global_batch_size))
    found: dict[tuple[int, int], list[int]] = {}
    for device, micro in itertools.product(
        range(layout.num_devices), range(layout.num_microbatches)
    ):
        for ghost_index in sorted(set((places[device, micro] // ghost).tolist())):
            found.setdefault((micro, ghost_index), []).append(device)
    return found


def test_every_layout_holds_whole_ghost_batches():
    """Each ghost lies in one micro-batch, on one device or on as many neighbours as all others."""
    for batch, num_devices, ghost in SMALL:
        for layout in layouts(batch, num_devices, ghost):
            placed = ghosts_by_device(layout, ghost)
            assert len(placed) == batch // ghost and batch % ghost == 0
            assert len({len(devices) for devices in placed.values()}) == 1
            for devices in placed.values():
                assert devices == list(range(devices[0], devices[-1] + 1))
                assert devices[0] % len(devices) == 0


def test_nearest_sizes_are_the_nearest_that_can_be_laid_out():
    for batch, num_devices, ghost in SMALL:
        can = [b for b in range(1, 200) if next(layouts(b, num_devices, ghost), None)]
        below = [b for b in can if b < batch][-1:]
        above = [b for b in can if b > batch][:1]
        assert list(nearest_batch_sizes(batch, num_devices, ghost)) == below + above


@pytest.mark.parametrize(
    ("batch", "num_devices", "ghost", "limit", "num_microbatches"),
    [
        (4096, 8, 128, 4096, 1),
        (128, 1, 16, 64, 2),
        (128, 1, 16, 63, 4),
        (96, 1, 16, 32, 3),
        (128, 8, 16, 4, 4),
        (32, 8, 16, 4, 1),
    ],
)
def test_takes_the_fewest_microbatches(batch, num_devices, ghost, limit, num_microbatches):
    layout = choose_layout(batch, num_devices, ghost, limit)
    assert layout.num_microbatches == num_microbatches
    assert layout.microbatch_size <= limit


def test_a_batch_that_does_not_divide_names_the_nearest():
    with pytest.raises(ValueError, match="100 cannot be laid out on 8 devices.*: 96 and 112"):
        choose_layout(100, 8, 16)
    with pytest.raises(ValueError, match="nearest that can: 16 "):
        choose_layout(4, 8, 16)


def test_too_small_a_limit_names_the_smallest_microbatch():
    with pytest.raises(ValueError, match="max_per_device_batch_size 8 .* ghost batches, 16 "):
        choose_layout(128, 1, 16, 8)


def test_mesh_takes_the_first_devices():
    assert list(parallel.make_mesh(2).devices) == jax.devices()[:2]
    assert parallel.make_mesh(0).size == 8
    with pytest.raises(ValueError, match="num_devices 9: 8 devices"):
        parallel.make_mesh(9)


def test_placing_arrays():
    mesh = parallel.make_mesh(4)
    copies = parallel.replicate({"w": np.arange(3)}, mesh)["w"]
    assert [s.data.tolist() for s in copies.addressable_shards] == [[0, 1, 2]] * 4
    pieces = parallel.shard({"x": np.arange(8).reshape(4, 2)}, mesh)["x"]
    assert [s.data.tolist() for s in pieces.addressable_shards] == [
        [[0, 1]], [[2, 3]], [[4, 5]], [[6, 7]],
    ]  # fmt: skip


# Devices and the most examples in one pass, for batches of 32 and then 128 in ghosts of 16.
LAYOUTS = [
    (2, "auto"),  # 16 and 64 on each: whole ghosts
    (4, "auto"),  # 8 and 32: two devices share a ghost, then each has two
    (8, "auto"),  # 4 and 16: four devices share a ghost, then each has one
    (1, 64),  # 1 and 2 micro-batches
    (1, 32),  # 1 and 4
    (4, 16),  # 1 and 2
    (8, 4),  # 1 and 4: all ghosts are shared
]
MIXED = [(2, "auto"), (4, 16), (8, 4)]


@pytest.mark.parametrize(
    ("optimizer", "num_devices", "limit"),
    [("momentum", *layout) for layout in LAYOUTS]
    + [(name, *layout) for name in ("sgd", "adam") for layout in MIXED],
)
def test_training_does_not_depend_on_the_layout(optimizer, num_devices, limit, tmp_path):
    """14 updates across a growth: state and rows equal those of one device and one pass.

    The sums run in another order, so to float32: 2e-5 of the largest entry of each array. Some
    pixels are always blank, and batch norm cancels them: their gradient is rounding error, which
    Adam's usual epsilon would blow up to the size of the others.
    """
    changes = {"optimizer.name": optimizer, "recipe.learning_rate": RATES[optimizer]}
    changes["optimizer.epsilon"] = 1e-3
    expected = reference(optimizer, changes, tmp_path / "one")
    actual = run_in_memory(
        tmp_path / "many",
        changes | {"run.num_devices": num_devices, "run.max_per_device_batch_size": limit},
    )
    assert actual.states.keys() == expected.states.keys() == {352, 736}
    jax.tree.map(assert_float32_close, actual.states, expected.states)
    assert len(actual.rows) == len(expected.rows) == 6
    jax.tree.map(assert_float32_close, actual.rows, expected.rows)


RATES = {"sgd": 0.2, "momentum": 0.05, "adam": 0.003}
_references: dict = {}


def reference(optimizer, changes, workdir):
    """One device, one pass; trained once for each optimizer."""
    if optimizer not in _references:
        _references[optimizer] = run_in_memory(workdir, changes)
    return _references[optimizer]


def assert_float32_close(actual, expected):
    scale = np.abs(expected).max(initial=1e-30)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-5 * scale)
