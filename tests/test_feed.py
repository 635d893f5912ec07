"""The feed of streamed JPEGs: which process reads what, and that nothing else depends on it."""

import hashlib
from collections.abc import Sequence
from functools import partial
from itertools import accumulate
from types import SimpleNamespace
from unittest import mock

import jax
import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st

from batchgrow import open_data, parallel
from batchgrow.plan.curves import constant
from batchgrow.data import imagenet
from batchgrow.data.feed import HostBatch, PieceFeed, Share
from batchgrow.data.stream import Stream
from batchgrow.data.workers import PieceLoader
from batchgrow.layout import Layout, choose_layout
from batchgrow.plan.plan import Phase, Recipe, Schedule

NUM_EXAMPLES = 50
GHOST = 4
# (batch size, updates): it grows twice, and 104 examples are two epochs and some more.
GROWING = ((8, 4), (16, 3), (24, 1))


class Numbered:
    """JPEGs of noise, the number of each as its label; counts who is read."""

    def __init__(self):
        noise = np.random.default_rng(0).integers(0, 256, (NUM_EXAMPLES, 12, 12, 3), np.uint8)
        self.jpegs = [simplejpeg.encode_jpeg(image, 90, "RGB") for image in noise]
        self.read: list[int] = []

    def __len__(self) -> int:
        return NUM_EXAMPLES

    def __getitem__(self, index: int) -> dict:
        self.read.append(index)
        return {"image": self.jpegs[index], "label": index}


def make_schedule(phases: Sequence[tuple[int, int]]) -> Schedule:
    starts = list(accumulate((size * updates for size, updates in phases), initial=0))
    recipe = Recipe(phases[0][0], 0.9, constant(0.1), NUM_EXAMPLES, starts[-1] / NUM_EXAMPLES)
    return Schedule(
        recipe,
        tuple(
            Phase(start, updates, size, 0.9, start)
            for start, (size, updates) in zip(starts, phases, strict=False)
        ),
    )


def layouts_of(schedule: Schedule, num_devices: int, limit: float, ghost: int) -> list[Layout]:
    sizes = [phase.batch_size for phase in schedule.phases]
    return [choose_layout(size, num_devices, ghost, limit) for size in sizes]


def share_of(
    schedule: Schedule, slots: list[int], num_devices: int, limit: int | str, ghost: int = GHOST
) -> Share:
    """What `open_data` gives the process that drives these devices."""
    run = SimpleNamespace(max_per_device_batch_size=limit)
    config = SimpleNamespace(run=run, ghost_batch_size=ghost)
    mesh = SimpleNamespace(size=num_devices)
    with (
        mock.patch.object(parallel, "local_device_slots", lambda _: slots),
        mock.patch.object(jax, "process_count", lambda: num_devices // len(slots)),
    ):
        return open_data._share(config, schedule, mesh)


def updates_of(
    schedule: Schedule, slots: list[int], layouts: list[Layout], first: int = 0
) -> list[np.ndarray]:
    """The positions of every update from position `first` on, as the loop asks for them."""
    found = []
    for phase, layout in zip(schedule.phases, layouts, strict=True):
        for start in range(phase.start_examples, phase.end_examples, phase.batch_size):
            if start >= first:
                positions = start + np.arange(phase.batch_size)[None]
                found.append(layout.split(positions)[slots])
    return found


def feed_of(source: Numbered, share: Share) -> PieceFeed:
    load = PieceLoader(
        source=source,
        positions=share,
        indices=Stream(NUM_EXAMPLES, seed=1).indices,
        crop=partial(imagenet.training_crop, seed=2),
        image_size=8,
    )
    return PieceFeed(load, share, num_workers=0)


def by_position(batches: Sequence[HostBatch]) -> dict[int, tuple[int, str]]:
    """Of each stream position its label and a digest of its pixels; none stands twice."""
    found = {}
    for batch in batches:
        positions, labels = batch["position"].ravel(), batch["label"].ravel()
        images = batch["image"].reshape(positions.size, 8, 8, 3)
        for position, label, image in zip(positions.tolist(), labels, images, strict=True):
            assert position not in found
            found[position] = int(label), hashlib.sha256(image.tobytes()).hexdigest()
    return found


def run_all(
    phases: Sequence[tuple[int, int]], num_processes: int, num_devices: int, limit: int
) -> tuple[dict[int, tuple[int, str]], list[Numbered]]:
    """What all processes together send to their devices, and what each has read."""
    schedule = make_schedule(phases)
    layouts = layouts_of(schedule, num_devices, limit, GHOST)
    found, sources = {}, [Numbered() for _ in range(num_processes)]
    local = num_devices // num_processes
    for process, source in enumerate(sources):
        slots = list(range(process * local, (process + 1) * local))
        feed = feed_of(source, share_of(schedule, slots, num_devices, limit))
        updates = updates_of(schedule, slots, layouts)
        own = by_position([feed.batch(positions) for positions in updates])
        feed.close()
        assert not own.keys() & found.keys()
        found |= own
    return found, sources


REFERENCE = run_all(GROWING, 1, 1, 1000)[0]


def test_every_position_holds_the_streams_example():
    assert sorted(REFERENCE) == list(range(104))
    indices = Stream(NUM_EXAMPLES, seed=1).indices(np.arange(104))
    assert [REFERENCE[p][0] for p in range(104)] == indices.tolist()
    for epoch in (0, 50):
        assert {REFERENCE[p][0] for p in range(epoch, epoch + 50)} == set(range(50))


@pytest.mark.parametrize(
    ("phases", "num_processes", "num_devices", "limit"),
    [
        pytest.param(GROWING, 1, 1, 4, id="micro-batches"),
        pytest.param(GROWING, 1, 4, 2, id="devices"),
        pytest.param(GROWING, 2, 2, 1000, id="two processes"),
        pytest.param(GROWING, 2, 4, 2, id="two processes, micro-batches, shared ghosts"),
        pytest.param(GROWING, 4, 8, 1, id="four processes, a ghost on two of them"),
        pytest.param(((8, 13),), 2, 4, 2, id="no growth"),
    ],
)
def test_what_stands_where_depends_on_nothing_else(phases, num_processes, num_devices, limit):
    """Pixels included: not on processes, devices, micro-batches or growth. Each is read once."""
    found, sources = run_all(phases, num_processes, num_devices, limit)
    assert found == REFERENCE
    # A process may have read ahead of its last piece, never beyond the end of the run.
    assert sum(len(source.read) for source in sources) == len(REFERENCE)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_pieces_are_what_the_updates_ask_for(data):
    """For any growth, layout and process: in that order, whole pieces, found by their number."""
    ghost = data.draw(st.sampled_from([1, 2, 6, 8]))
    num_processes, local = data.draw(st.sampled_from([1, 2, 3])), data.draw(st.integers(1, 4))
    num_devices = num_processes * local
    unit = np.lcm(ghost, num_devices)
    sizes = st.tuples(st.integers(1, 6).map(lambda k: int(k * unit)), st.integers(1, 4))
    schedule = make_schedule(data.draw(st.lists(sizes, min_size=1, max_size=3)))
    limit = data.draw(st.sampled_from([ghost, 2 * ghost, 1000]))
    first = data.draw(st.integers(0, num_processes - 1)) * local
    slots = list(range(first, first + local))
    updates = updates_of(schedule, slots, layouts_of(schedule, num_devices, limit, ghost))
    share = share_of(schedule, slots, num_devices, limit, ghost)
    pieces = [share(number) for number in range(share.num_pieces)]
    in_order = [np.moveaxis(positions, 0, -2).ravel() for positions in updates]
    np.testing.assert_array_equal(np.concatenate(pieces), np.concatenate(in_order))
    assert [share.number(int(piece[0])) for piece in pieces] == list(range(share.num_pieces))
    for beyond in (lambda: share(share.num_pieces), lambda: share.number(schedule.end_examples)):
        with pytest.raises(IndexError, match="beyond the end of the run"):
            beyond()


@pytest.mark.parametrize("resume_at", [8, 32, 64, 80])  # in the first phase, ..., the last update
def test_a_resumed_feed_goes_on_where_it_was(resume_at):
    """Also on more devices than before, and a feed that is sent back starts anew there."""
    schedule = make_schedule(GROWING)
    layouts = layouts_of(schedule, 2, 4, GHOST)
    source = Numbered()
    feed = feed_of(source, share_of(schedule, [0, 1], 2, 4))
    rest = updates_of(schedule, [0, 1], layouts, first=resume_at)
    found = by_position([feed.batch(positions) for positions in rest])
    assert found == {p: known for p, known in REFERENCE.items() if p >= resume_at}
    assert len(source.read) == 104 - resume_at  # nothing before it was read
    again = by_position([feed.batch(rest[0])])
    assert again == {p: REFERENCE[p] for p in again}
    feed.close()


@pytest.mark.parametrize("num_processes", [1, 2])
@pytest.mark.parametrize(("phases", "resume_at"), [(((4, 7), (16, 4)), 28), (((4, 1), (24, 3)), 4)])
def test_devices_too_many_for_a_phase_that_is_over(phases, resume_at, num_processes):
    """A run moved to 8 devices at a growth, whose number its first batch of 4 did not fit."""
    schedule = make_schedule(phases)
    layout = choose_layout(phases[1][0], 8, GHOST, 4)
    found, local = {}, 8 // num_processes
    for process in range(num_processes):
        slots = list(range(process * local, (process + 1) * local))
        share = share_of(schedule, slots, 8, 4)
        rest = updates_of(schedule, slots, [layout] * 2, first=resume_at)
        feed = feed_of(Numbered(), share)
        found |= by_position([feed.batch(positions) for positions in rest])
        feed.close()
        assert (
            share.number(int(rest[0].ravel()[0]))
            + sum(positions.size // share.piece_size for positions in rest)
            == share.num_pieces
        )
    whole = range(resume_at, schedule.end_examples)
    assert found == {p: REFERENCE[p] for p in whole}


def test_a_schedule_that_asks_for_other_examples_is_noticed():
    schedule = make_schedule(GROWING)
    feed = feed_of(Numbered(), share_of(schedule, [0], 1, 1000))
    with pytest.raises(AssertionError, match="disagree"):
        feed.batch(np.arange(8)[None, None, None, ::-1] + 1)
    feed.close()


def test_several_processes_need_to_know_their_share():
    schedule = make_schedule(GROWING)
    with pytest.raises(ValueError, match="is 'auto', but with several processes"):
        share_of(schedule, [0], 2, "auto")
    with pytest.raises(ValueError, match=r"\[0, 2\] of 4, which are no neighbours"):
        share_of(schedule, [0, 2], 4, 8)
