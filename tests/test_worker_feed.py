"""Examples by stream position from worker processes: what they hold, and how the processes end."""

import functools
import hashlib
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st

from batchgrow.data import jpeg, worker_feed
from batchgrow.data.records import BadRecordError
from batchgrow.data.stream import Stream
from batchgrow.data.worker_feed import WorkerFeed, evaluation_batches
from batchgrow.data.workers import JpegLoader
from batchgrow.layout import possible_layouts

NUM_EXAMPLES = 50
GHOST = 4
# (batch size, updates): it grows twice, and 104 examples are two epochs and some more.
GROWING = ((8, 4), (16, 3), (24, 1))
NUM_POSITIONS = 104
AHEAD = worker_feed.SLOTS * worker_feed.CHUNK  # examples that one worker decodes ahead


class Numbered:
    """JPEGs of noise, the number of each as its label; notes what is read."""

    def __init__(self, bad: Sequence[int] = ()):
        noise = np.random.default_rng(0).integers(0, 256, (NUM_EXAMPLES, 12, 12, 3), np.uint8)
        self.jpegs = [simplejpeg.encode_jpeg(image, 90, "RGB") for image in noise]
        for index in bad:
            self.jpegs[index] = self.jpegs[index][:100]
        self.read: list[int] = []

    def __len__(self) -> int:
        return NUM_EXAMPLES

    def __getitem__(self, index: int) -> dict:
        self.read.append(index)
        return {"image": self.jpegs[index], "label": index, "file_name": f"{index}.JPEG"}


def loader(source, on_bad_record="stop") -> JpegLoader:
    return JpegLoader(source, functools.partial(jpeg.training_crop, seed=2), 8, on_bad_record)


def feed_of(source, *, num_workers: int = 0, on_bad_record: str = "stop") -> WorkerFeed:
    indices = Stream(NUM_EXAMPLES, seed=1).indices
    return WorkerFeed(loader(source, on_bad_record), indices, num_workers=num_workers)


def expected_batch(positions: np.ndarray) -> dict[str, Any]:
    """What a feed returns, made without one."""
    indices = Stream(NUM_EXAMPLES, seed=1).indices(positions.ravel())
    images = np.empty((positions.size, 8, 8, 3), np.uint8)
    labels, _ = loader(Numbered())(indices, positions.ravel(), images)
    examples = {
        "image": images.reshape(*positions.shape, 8, 8, 3),
        "label": labels.reshape(positions.shape),
    }
    return {"examples": examples, "position": positions.astype(np.uint32)}


def assert_equal(batch: dict[str, Any], expected: dict[str, Any]) -> None:
    assert jax.tree.map(lambda x: x.dtype, batch) == jax.tree.map(lambda x: x.dtype, expected)
    jax.tree.map(np.testing.assert_array_equal, batch, expected)


# What stands where


def updates_of(
    segments: Sequence[tuple[int, int]], devices: range, num_devices: int, limit: float
) -> list[np.ndarray]:
    """The positions of each update that the loop asks for, (updates, micro-batches, examples)."""
    found, start = [], 0
    for batch_size, num_updates in segments:
        layout = possible_layouts(batch_size, num_devices, GHOST, limit)[0]
        for _ in range(num_updates):
            positions = layout.split(start + np.arange(batch_size)[None])
            of_devices = np.split(positions, num_devices, axis=-1)
            found.append(np.concatenate([of_devices[device] for device in devices], axis=-1))
            start += batch_size
    return found


def by_position(batches: Sequence[dict[str, Any]]) -> dict[int, tuple[int, str]]:
    """The label and a digest of the pixels of each stream position; each occurs once."""
    found = {}
    for batch in batches:
        positions, labels = batch["position"].ravel(), batch["examples"]["label"].ravel()
        images = batch["examples"]["image"].reshape(positions.size, 8, 8, 3)
        for position, label, image in zip(positions.tolist(), labels, images, strict=True):
            assert position not in found
            found[position] = int(label), hashlib.sha256(image.tobytes()).hexdigest()
    return found


REFERENCE = by_position([expected_batch(np.arange(NUM_POSITIONS))])


def test_a_look_at_other_positions_takes_nothing():
    """`peek`, for the noise: what was read ahead stays, and is not read again."""
    source, ahead, other = Numbered(), np.arange(48), np.array([[60, 3], [100, 7]])
    with feed_of(source) as feed:
        assert feed.read_ahead(ahead)
        assert_equal(feed.peek(other), expected_batch(other))
        assert_equal(feed.batch(ahead), expected_batch(ahead))
    assert len(source.read) == ahead.size + other.size


@pytest.mark.parametrize("ahead", [0, 1, 3, 100])
@pytest.mark.parametrize(
    ("segments", "num_processes", "num_devices", "limit"),
    [
        pytest.param(GROWING, 1, 1, 4, id="micro-batches"),
        pytest.param(GROWING, 1, 4, 2, id="devices"),
        pytest.param(GROWING, 2, 2, 1000, id="two processes"),
        pytest.param(GROWING, 2, 4, 2, id="two processes, micro-batches, shared ghosts"),
        pytest.param(GROWING, 4, 8, 1, id="four processes, a ghost on two of them"),
        pytest.param(((8, 13),), 2, 4, 2, id="no growth"),
    ],
)
def test_what_stands_where_depends_on_nothing_else(
    segments, num_processes, num_devices, limit, ahead
):
    """Pixels do not depend on processes, devices, micro-batches, growth or on what is requested
    ahead, also beyond a growth. Each image is read once, by one process."""
    found, num_read = {}, 0
    local = num_devices // num_processes
    for first in range(0, num_devices, local):
        source = Numbered()
        updates = updates_of(segments, range(first, first + local), num_devices, limit)
        with feed_of(source) as feed:
            for positions in updates[:ahead]:
                feed.read_ahead(positions)
            batches = []
            for i, positions in enumerate(updates):
                for following in updates[i + ahead : i + ahead + 1] if ahead else ():
                    feed.read_ahead(following)
                batches.append(feed.batch(positions))
        own = by_position(batches)
        assert not own.keys() & found.keys()
        found |= own
        num_read += len(source.read)
    assert found == REFERENCE
    indices = Stream(NUM_EXAMPLES, seed=1).indices(np.arange(NUM_POSITIONS))
    assert [found[p][0] for p in range(NUM_POSITIONS)] == indices.tolist()
    assert num_read == NUM_POSITIONS


@pytest.mark.parametrize("resume_at", [8, 32, 64, 80])  # in each segment, and the last update
def test_a_resumed_feed_goes_on_where_it_was(resume_at):
    """It reads nothing of what was before, and a feed that is sent back starts anew there."""
    updates = updates_of(GROWING, range(2), 2, 4)
    rest = [positions for positions in updates if positions.min() >= resume_at]
    source = Numbered()
    with feed_of(source) as feed:
        found = by_position([feed.batch(positions) for positions in rest])
        assert found == {p: known for p, known in REFERENCE.items() if p >= resume_at}
        assert len(source.read) == NUM_POSITIONS - resume_at
        assert_equal(feed.batch(rest[0]), expected_batch(rest[0]))


def test_the_last_positions_of_a_run():
    """Positions have 32 bits: a longer run is refused when its experiment is made."""
    positions = 2**32 - 6 + np.arange(6).reshape(2, 3)
    with feed_of(Numbered()) as feed:
        feed.read_ahead(positions)
        assert_equal(feed.batch(positions), expected_batch(positions))


REQUESTS = st.lists(
    st.tuples(
        st.booleans(),  # ahead, or batch
        st.integers(0, 90),  # the first position
        st.integers(0, 2 * AHEAD),  # how many
        st.sampled_from([-3, 1, 2]),  # step
    ),
    max_size=12,
)


@settings(max_examples=60, deadline=None)
@given(requests=REQUESTS, in_order=st.booleans())
def test_any_sequence_of_requests_gives_the_right_examples(requests, in_order):
    """What was requested before, and in which order, never changes what is returned."""
    requested: list[np.ndarray] = []
    with feed_of(Numbered()) as feed:
        for is_ahead, first, count, step in requests:
            positions = 600 + first + step * np.arange(count)
            if is_ahead:
                feed.read_ahead(positions)
                requested.append(positions)
                continue
            if in_order and requested:
                positions = requested.pop(0)
            assert_equal(feed.batch(positions), expected_batch(positions))
        assert len(feed._free) + len(feed._started) == worker_feed.SLOTS


@settings(max_examples=40, deadline=None)
@given(
    ahead=st.lists(st.integers(1, 100), min_size=1, max_size=6),
    cuts=st.lists(st.integers(0, 600), max_size=6),
)
def test_requests_and_batches_may_be_cut_in_other_places(ahead, cuts):
    """The order counts. Each is read once, although no batch is what one request asked for."""
    total, source = sum(ahead), Numbered()
    ends = np.cumsum(ahead)
    with feed_of(source) as feed:
        for start, end in zip(ends - ahead, ends, strict=True):
            feed.read_ahead(np.arange(start, end))
        edges = sorted({0, total, *(cut for cut in cuts if cut < total)})
        for start, end in zip(edges, edges[1:], strict=False):
            positions = np.arange(start, end)
            assert_equal(feed.batch(positions), expected_batch(positions))
    assert len(source.read) == total


def test_what_is_prepared_ahead_is_bounded():
    source = Numbered()
    with feed_of(source) as feed:
        feed.read_ahead(np.arange(100_000))
        feed._started[-1].future.result()
        assert len(source.read) == AHEAD
        feed.batch(np.arange(worker_feed.CHUNK))
        feed._started[-1].future.result()
        assert len(source.read) == AHEAD + worker_feed.CHUNK
        feed.batch(np.array([7]))  # nothing more of what was requested before is read
        assert source.read[-1] == Stream(NUM_EXAMPLES, seed=1).indices(np.array([7]))[0]


# Bad records


def test_replaced_records_are_counted_once_when_they_are_returned(caplog):
    positions = np.arange(50)
    place = int(np.flatnonzero(expected_batch(positions)["examples"]["label"] == 7)[0])
    with feed_of(Numbered(bad=[7]), on_bad_record="replace") as feed:
        feed.read_ahead(positions)
        for i in positions:
            assert feed.batch(np.array([i]))["examples"]["label"][0] == (
                8 if i == place else REFERENCE[i][0]
            )
            assert feed.num_replaced == (i >= place)
        feed.batch(np.array([[place, 3], [place, 4]]))  # as a call that is filled up
        assert feed.num_replaced == 2
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2
    assert all(line.startswith("replaced bad record 7 (7.JPEG): ") for line in lines)


@pytest.mark.parametrize("num_workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_bad_record_stops_with_its_name(num_workers):
    with feed_of(Numbered(bad=[7]), num_workers=num_workers) as feed:
        with pytest.raises(BadRecordError, match=r"bad record 7 \(7.JPEG\): JPEG file without"):
            feed.batch(np.arange(50))


# Evaluation


@pytest.mark.parametrize("process_count", [1, 3])
def test_evaluation_sees_every_example_once(process_count):
    counts, lengths = np.zeros(NUM_EXAMPLES, int), []
    for process_index in range(process_count):
        crop = functools.partial(jpeg.evaluation_crop, image_size=8)
        source = Numbered()
        with WorkerFeed(JpegLoader(source, crop, 8), num_workers=0) as feed:
            for _ in range(2):  # a feed is used again
                batches = list(
                    evaluation_batches(
                        feed, NUM_EXAMPLES, 7 * process_count, process_index, process_count
                    )
                )
                lengths.append(len(batches))
        for batch in batches:
            assert (
                batch["examples"]["image"].shape == (7, 8, 8, 3)
                and batch["mask"].dtype == np.float32
            )
            np.add.at(counts, batch["examples"]["label"][batch["mask"] > 0], 1)
    assert (counts == 1).all()
    assert len(set(lengths)) == 1


def test_an_evaluation_that_was_left_can_be_started_again():
    crop = functools.partial(jpeg.evaluation_crop, image_size=8)
    with WorkerFeed(JpegLoader(Numbered(), crop, 8), num_workers=0) as feed:
        next(evaluation_batches(feed, NUM_EXAMPLES, 7))
        batches = list(evaluation_batches(feed, NUM_EXAMPLES, 7))
    labels = np.concatenate([batch["examples"]["label"] for batch in batches])
    np.testing.assert_array_equal(labels, np.minimum(np.arange(56), 49))


# Processes


@pytest.mark.slow
def test_workers_change_nothing_and_stop_cleanly():
    updates = updates_of(GROWING, range(4), 4, 2)
    with feed_of(Numbered(), num_workers=2) as feed:
        for positions in updates:
            feed.read_ahead(positions)
        for positions in updates[1:]:
            assert_equal(feed.batch(positions), expected_batch(positions))
        feed.read_ahead(np.arange(100_000))
        processes = [worker.process for worker in feed._workers]
        assert len(processes) == 2 and all(process.poll() is None for process in processes)
    assert all(process.returncode is not None for process in processes)
    feed.close()  # may be called again


@pytest.mark.slow
def test_workers_outlive_the_signals_that_stop_a_run():
    """From their first moment on."""
    done = threading.Event()
    with feed_of(Numbered(), num_workers=2) as feed:
        signaller = threading.Thread(target=signal_workers_until, args=(done, feed))
        signaller.start()
        try:
            positions = np.arange(2000)
            assert_equal(feed.batch(positions), expected_batch(positions))
        finally:
            done.set()
            signaller.join()
        assert len(feed._workers) == 2
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()


def signal_workers_until(done: threading.Event, feed: WorkerFeed) -> None:
    while not done.wait(0.002):
        for worker in list(feed._workers):
            os.kill(worker.process.pid, signal.SIGTERM)
            os.kill(worker.process.pid, signal.SIGINT)


@pytest.mark.slow
def test_a_worker_that_dies_is_reported():
    with feed_of(Numbered(), num_workers=1) as feed:
        feed.batch(np.arange(4))
        os.kill(feed._workers[0].process.pid, signal.SIGKILL)
        with pytest.raises(RuntimeError, match="ended with status -9.* lower run.num_workers"):
            feed.batch(np.arange(1000))


def test_a_source_that_does_not_pickle_is_refused():
    source = Numbered()
    source.lock = threading.Lock()
    feed_of(source).close()
    with pytest.raises(ValueError, match="cannot be sent to workers .*lock.* run.num_workers to 0"):
        feed_of(source, num_workers=1)


# A worker that has imported jax gives its examples the label 1.
BARE = """
import sys, simplejpeg, numpy
class Source:
    def __len__(self):
        return 4
    def __getitem__(self, index):
        image = simplejpeg.encode_jpeg(numpy.zeros((12, 12, 3), numpy.uint8))
        return {"image": image, "label": int("jax" in sys.modules)}
"""
START = """
import functools, multiprocessing, os, signal, sys
import numpy as np
import bare
from batchgrow.data import jpeg, worker_feed, workers
crop = functools.partial(jpeg.training_crop, seed=0)
class Local(bare.Source):
    pass
source = Local() if "local" in sys.argv else bare.Source()
feed = worker_feed.WorkerFeed(workers.JpegLoader(source, crop, 8), lambda p: p % 4, num_workers=2)
feed.read_ahead(np.arange(10_000))
labels = feed.batch(np.arange(100))["examples"]["label"]
print(labels.max(), *(worker.process.pid for worker in feed._workers), flush=True)
if "kill" in sys.argv:
    os.kill(os.getpid(), signal.SIGKILL)
if "close" in sys.argv:
    feed.close()
"""


def run_script(folder: pathlib.Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs START, which has no guard of its main module."""
    (folder / "bare.py").write_text(BARE)
    (folder / "start.py").write_text(START)
    root = str(pathlib.Path(__file__).parent.parent)
    return subprocess.run(
        [sys.executable, folder / "start.py", *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": root},
        timeout=120,
    )


@pytest.mark.slow
@pytest.mark.parametrize("how", ["kill", "close", "exit"])
def test_workers_end_with_their_parent_and_leave_nothing(tmp_path, how):
    """Also when it is killed, and when it ends without closing them."""
    run = run_script(tmp_path, how)
    assert run.returncode == (-signal.SIGKILL if how == "kill" else 0), run.stderr
    assert run.stderr == ""  # no warning about anything left behind
    imports_jax, *pids = map(int, run.stdout.split())
    assert imports_jax == 0
    assert len(pids) == 2
    deadline = time.monotonic() + 20
    while any(map(is_running, pids)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(map(is_running, pids))


@pytest.mark.slow
def test_a_source_that_the_workers_cannot_import_is_refused(tmp_path):
    run = run_script(tmp_path, "local")
    assert run.returncode == 1
    assert "cannot load the data source (AttributeError: " in run.stderr.splitlines()[-1]


def is_running(pid: int) -> bool:
    """Whether there is such a process that is not just waiting to be reaped."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
