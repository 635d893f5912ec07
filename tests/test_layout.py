"""Layouts of a batch on devices, and the same training whatever the layout."""

import itertools
import math

import jax
import numpy as np
import pytest
from tiny import Trained, assert_close, run_tiny

from batchgrow import layout as layouts
from batchgrow.layout import Layout, every_layout, nearest_batch_sizes, possible_layouts

SMALL = [(b, d, g) for b in range(1, 49) for d in (1, 2, 3, 4, 8) for g in (1, 4, 6, 16)]


def ghosts_by_device(layout: Layout, ghost: int) -> dict[tuple[int, int], list[int]]:
    """The devices that hold each ghost batch, by micro-batch and ghost."""
    places = layout.split(np.arange(layout.batch_size))
    assert places.shape == (
        layout.num_microbatches,
        layout.microbatch_size * layout.num_devices,
    )
    by_device = np.split(places, layout.num_devices, axis=-1)
    found: dict[tuple[int, int], list[int]] = {}
    for device, micro in itertools.product(
        range(layout.num_devices), range(layout.num_microbatches)
    ):
        for ghost_index in sorted(set((by_device[device][micro] // ghost).tolist())):
            found.setdefault((micro, ghost_index), []).append(device)
    return found


def test_every_layout_holds_whole_ghost_batches():
    """Each ghost is in one micro-batch, on one device or on as many neighbours as all others."""
    for batch, num_devices, ghost in SMALL:
        for layout in every_layout(batch, num_devices, ghost):
            placed = ghosts_by_device(layout, ghost)
            assert len(placed) == batch // ghost and batch % ghost == 0
            assert len({len(devices) for devices in placed.values()}) == 1
            for devices in placed.values():
                assert devices == list(range(devices[0], devices[-1] + 1))
                assert devices[0] % len(devices) == 0


def test_nearest_sizes_are_the_nearest_that_can_be_laid_out():
    for batch, num_devices, ghost in SMALL:
        can = [b for b in range(1, 200) if next(every_layout(b, num_devices, ghost), None)]
        below = [b for b in can if b < batch][-1:]
        above = [b for b in can if b > batch][:1]
        assert list(nearest_batch_sizes(batch, num_devices, ghost)) == below + above


@pytest.mark.parametrize(
    ("batch", "num_devices", "ghost", "limit", "num_microbatches"),
    [
        (4096, 8, 128, 4096, 1),
        (4096, 8, 128, math.inf, 1),
        (128, 1, 16, 64, 2),
        (128, 1, 16, 63, 4),
        (96, 1, 16, 32, 3),
        (128, 8, 16, 4, 4),
        (32, 8, 16, 4, 1),
    ],
)
def test_the_fewest_microbatches_come_first(batch, num_devices, ghost, limit, num_microbatches):
    allowed = possible_layouts(batch, num_devices, ghost, limit)
    assert allowed[0].num_microbatches == num_microbatches
    assert all(layout.microbatch_size <= limit for layout in allowed)
    sizes = [layout.num_microbatches for layout in allowed]
    assert sizes == sorted(set(sizes))


def test_a_batch_that_does_not_divide_names_the_nearest():
    with pytest.raises(ValueError, match="100 cannot be laid out on 8 devices.*: 96 and 112"):
        possible_layouts(100, 8, 16)
    with pytest.raises(ValueError, match="nearest that can: 16 "):
        possible_layouts(4, 8, 16)
    with pytest.raises(ValueError, match="nearest that can: 1600000112 "):
        possible_layouts(4, 100_000_007, 16)  # found at once


def test_too_small_a_limit_names_the_smallest_microbatch():
    with pytest.raises(ValueError, match="max_microbatch_size 8 is less than .* batches, 16 "):
        possible_layouts(128, 1, 16, 8)


def test_mesh_takes_the_first_devices():
    assert list(layouts.make_mesh(2).devices) == jax.devices()[:2]
    assert layouts.make_mesh().size == 8
    with pytest.raises(ValueError, match="num_devices 9: there are only 8 devices"):
        layouts.make_mesh(9)


def test_placing_arrays():
    mesh = layouts.make_mesh(4)
    copies = layouts.replicate({"w": np.arange(3)}, mesh)["w"]
    assert [s.data.tolist() for s in copies.addressable_shards] == [[0, 1, 2]] * 4
    pieces = layouts.shard({"x": np.arange(8).reshape(8, 1)}, mesh)["x"]
    assert [s.data.ravel().tolist() for s in pieces.addressable_shards] == [
        [0, 1], [2, 3], [4, 5], [6, 7],
    ]  # fmt: skip


def test_one_process_holds_all_examples():
    positions = np.arange(24).reshape(2, 3, 4)
    np.testing.assert_array_equal(
        layouts.local_examples(positions, layouts.make_mesh(4)), positions
    )


# Devices and the most examples in one pass, for batches of 32 and then 128 in ghosts of 16.
LAYOUTS = [
    (2, 128),  # 16 and 64 on each: whole ghosts
    (4, 128),  # 8 and 32: two devices share a ghost, then each has two
    (8, 128),  # 4 and 16: four devices share a ghost, then each has one
    (1, 64),  # 1 and 2 micro-batches
    (1, 32),  # 1 and 4
    (4, 16),  # 1 and 2
    (8, 4),  # 1 and 4: all ghosts are shared
]
SLOW = [(4, 128), (8, 128), (1, 64)]
MIXED = [(2, 128), (4, 16)]


@pytest.mark.parametrize(
    ("optimizer", "num_devices", "limit"),
    [("momentum", *layout) for layout in LAYOUTS if layout not in SLOW]
    + [pytest.param("momentum", *layout, marks=pytest.mark.slow) for layout in SLOW]
    + [("adam", 8, 4)]
    + [pytest.param("adam", *layout, marks=pytest.mark.slow) for layout in MIXED]
    + [pytest.param("sgd", *layout, marks=pytest.mark.slow) for layout in [*MIXED, (8, 4)]],
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
    actual = run_tiny(
        tmp_path / "many",
        changes | {"run.num_devices": num_devices, "run.max_microbatch_size": limit},
    )
    assert actual.states.keys() >= {352, 736}
    assert len(expected.rows) == 6
    assert_close(actual.results, expected.results)


RATES = {"sgd": 0.2, "momentum": 0.05, "adam": 0.003}
_references: dict[str, Trained] = {}


def reference(optimizer, changes, workdir):
    """One device, one pass; trained once for each optimizer."""
    if optimizer not in _references:
        _references[optimizer] = run_tiny(workdir, changes | {"run.max_microbatch_size": 128})
    return _references[optimizer]
