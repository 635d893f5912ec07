"""The order of the training stream, and examples read in it."""

import multiprocessing

import grain
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchgrow.data import permutations as permutations_module
from batchgrow.data.stream import Stream, take


@settings(max_examples=30, deadline=None)
@given(num_examples=st.integers(1, 60), seed=st.integers(0, 2**31), epoch=st.integers(0, 10**6))
def test_each_epoch_is_a_permutation(num_examples, seed, epoch):
    positions = np.arange(epoch * num_examples, (epoch + 1) * num_examples)
    indices = Stream(num_examples, seed).indices(positions)
    assert sorted(indices.tolist()) == list(range(num_examples))


@settings(max_examples=30, deadline=None)
@given(
    num_examples=st.integers(1, 20),
    sizes=st.lists(st.integers(1, 25), min_size=1, max_size=10),
    start=st.integers(0, 100),
)
def test_order_does_not_depend_on_how_it_is_cut(num_examples, sizes, start):
    """Batches of any sizes, across epochs, are the stream; so is one that starts in the middle."""
    stream = Stream(num_examples, seed=3)
    end = start + sum(sizes)
    whole = stream.indices(np.arange(end))
    cuts = np.cumsum([start, *sizes])
    parts = [stream.indices(np.arange(a, b)) for a, b in zip(cuts, cuts[1:], strict=False)]
    np.testing.assert_array_equal(np.concatenate(parts), whole[start:])


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = [
        tuple(Stream(30, seed).indices(np.arange(30 * epoch, 30 * (epoch + 1))).tolist())
        for seed in range(3)
        for epoch in range(3)
    ]
    assert len(set(orders)) == 9


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_seeds_that_would_share_epochs_are_refused(seed):
    """NumPy's SeedSequence reads [2**32, 0] and [0, 1] as the same words."""
    with pytest.raises(ValueError, match=f"seed={seed} must be at least 0 and below"):
        Stream(30, seed)


def test_a_stream_has_examples():
    with pytest.raises(ValueError, match="num_examples=0 must be at least 1"):
        Stream(0, seed=0)


def test_order_is_pinned():
    """A resumed run relies on the order being the same for ever."""
    order = [3, 6, 4, 0, 7, 5, 2, 1, 1, 4, 6, 5, 7, 3, 2, 0]
    assert Stream(8, 0).indices(np.arange(16)).tolist() == order


def test_only_the_epochs_of_a_batch_are_drawn(monkeypatch):
    """At epoch 1000 nothing is drawn for the thousand before."""
    drawn, compute = [], permutations_module.Permutations._compute

    def count(self, epoch):
        drawn.append(epoch)
        return compute(self, epoch)

    monkeypatch.setattr(permutations_module.Permutations, "_compute", count)
    permutations_module.permutations.cache_clear()
    Stream(10, 0).indices(np.arange(10_005, 10_025)[::-1])
    assert drawn == [1000, 1001, 1002]


def test_any_shape_of_positions():
    stream = Stream(10, 0)
    assert stream.indices(np.empty((0, 4))).shape == (0, 4)
    positions = np.arange(24).reshape(2, 3, 4)
    indices = stream.indices(positions)
    assert indices.shape == (2, 3, 4)
    np.testing.assert_array_equal(indices.ravel(), stream.indices(np.arange(24)))


SOURCES = {
    "list": [{"row": np.full(3, i, np.float32), "label": i} for i in range(6)],
    "grain": grain.MapDataset.range(6).map(
        lambda i: {"row": np.full(3, i, np.float32), "label": i}
    ),
}


@pytest.mark.parametrize("name", SOURCES)
def test_take_stacks_the_examples_of_any_source(name):
    batch = take(SOURCES[name], [4, 0, 4])
    assert set(batch) == {"row", "label"}
    assert batch["row"].dtype == np.float32
    np.testing.assert_array_equal(batch["row"], [[4.0] * 3, [0.0] * 3, [4.0] * 3])
    np.testing.assert_array_equal(batch["label"], [4, 0, 4])


def test_take_from_an_array_is_indexing():
    array, stream = np.arange(24.0).reshape(12, 2), Stream(12, seed=3)
    index = stream.indices(range(9, 15))
    np.testing.assert_array_equal(take(array, index), array[index])


def test_the_next_epoch_of_a_large_data_set_is_computed_ahead(monkeypatch):
    """It is ready before the first epoch ends, only two permutations are kept, the order stays."""
    monkeypatch.setattr(permutations_module, "PREPARED_AHEAD", 1)
    order = permutations_module.Permutations(100, seed=3)
    for epoch in range(5):
        generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([3, epoch])))
        np.testing.assert_array_equal(order(epoch), generator.permutation(100))
        assert order._known.keys() == {epoch, epoch + 1}
    ahead = order._known[5]
    assert ahead.result() is order(5)


@pytest.mark.skipif(
    "fork" not in multiprocessing.get_all_start_methods(), reason="no fork on this system"
)
def test_a_forked_process_has_a_stream_of_a_large_data_set(monkeypatch):
    """It lacks the thread that computed ahead before the fork."""
    monkeypatch.setattr(permutations_module, "PREPARED_AHEAD", 1)
    stream, positions = Stream(100, seed=4), np.arange(250)  # of three epochs
    stream.indices(positions[:1])
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    child = context.Process(target=lambda: results.put(stream.indices(positions)), daemon=True)
    child.start()
    child.join(10)
    alive = child.is_alive()
    child.kill()
    assert not alive
    np.testing.assert_array_equal(results.get(), stream.indices(positions))
