"""What the host sends for stream positions, and the examples that the step makes of it."""

from typing import Any

import jax
import numpy as np
import pytest
from tiny import NotInMemory

from batchgrow.data.datasets import ArrayDataset
from batchgrow.data.feed import EvaluationBatches, make_feed
from batchgrow.data.stream import Stream
from batchgrow.data.text import TextDataset
from batchgrow.layout import make_mesh

TABLE = ArrayDataset({"x": np.arange(100.0).reshape(50, 2), "y": np.arange(50)})
TEXT = TextDataset(np.arange(203, dtype=np.uint8), context=4)  # 50 windows


@pytest.mark.parametrize("data", [TABLE, TEXT], ids=["table", "text"])
def test_resident_and_streamed_feeds_give_the_same_examples(data):
    positions = np.arange(40, 64).reshape(2, 3, 4)
    expected = data.gather(Stream(50, seed=4).indices(positions))
    for kind in ("resident", "streamed"):
        feed = make_feed(data, 4, kind)
        batch = feed.batch(positions)
        np.testing.assert_array_equal(batch["position"], positions)
        assert batch["position"].dtype == np.uint32
        sent = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[3:], x.dtype), batch)
        assert sent == feed.example
        found: Any = jax.jit(feed.examples)(batch, feed.arrays)
        jax.tree.map(np.testing.assert_array_equal, found, expected)
        assert not hasattr(feed, "read_ahead")
        feed.close()
    assert make_feed(data, 4, "resident").example.keys() == {"index", "position"}
    assert make_feed(data, 4, "streamed").arrays == ()


def test_any_attribute_of_a_data_set_of_ones_own_is_its_own():
    """Only `arrays` go to the devices, although `ArrayDataset` has `rows` for them."""

    class Own(TextDataset):
        rows = 50

    data = Own(TEXT.arrays["tokens"], context=4)
    assert make_feed(data, 4, "resident").arrays is data.arrays


def test_feeds_that_a_data_set_cannot_have():
    with pytest.raises(ValueError, match="run.input is 'workers', but .* set it to 'resident'"):
        make_feed(TABLE, 0, "workers")
    with pytest.raises(ValueError, match="run.input is 'resident', but .* not held in memory"):
        make_feed(NotInMemory(TABLE), 0, "resident")


def test_a_text_of_more_tokens_than_int32_counts_is_streamed():
    tokens = np.broadcast_to(np.uint8(7), 2**31)  # one byte of memory
    assert make_feed(TextDataset(tokens[1:], context=4), 0, "resident")
    data = TextDataset(tokens, context=4)
    with pytest.raises(ValueError, match="run.input .* 2,147,483,648 .*set it to 'streamed'"):
        make_feed(data, 0, "resident")
    last = data.gather(np.array([data.num_examples - 1]))["tokens"]
    assert last.tolist() == [[7] * 5]


def test_the_devices_keep_a_test_set_in_memory_if_they_shall():
    mesh = make_mesh(8)
    for data, stays in ((TABLE, True), (TABLE, False), (NotInMemory(TABLE), True)):
        batches = EvaluationBatches(data, 20, 0, mesh, stays)
        stays = stays and data is TABLE
        assert batches.shapes["mask"].shape == (24,)  # whole devices
        first, second = (list(batches) for _ in range(2))
        assert len(first) == 3
        for batch in first:
            shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch)
            jax.tree.map(lambda a, b: _assert_same_shape(a, b), shapes, batches.shapes)
        assert (first[0]["mask"] is second[0]["mask"]) is stays
        on_first = [x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(first)]
        assert batches.held_bytes() == (sum(on_first) if stays else 0)
        seen = np.concatenate([np.asarray(b["examples"]["y"])[b["mask"] == 1] for b in second])
        assert seen.tolist() == list(range(50))


def _assert_same_shape(found: Any, declared: Any) -> None:
    assert found.shape == declared.shape
    assert found.dtype == jax.dtypes.canonicalize_dtype(declared.dtype)
