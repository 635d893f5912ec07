"""The host's image pipeline: crops, partial and scaled decoding, pieces, bad records."""

import functools
import io
import multiprocessing
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import cv2
import numpy as np
import pytest
import simplejpeg
from PIL import Image

from batchgrow.data import imagenet, workers
from batchgrow.data.stream import Stream


def picture(height=150, width=200, seed=0):
    """Smooth colours, an edge and some noise: uint8 (height, width, 3)."""
    rng = np.random.default_rng(seed)
    grid = rng.uniform(40, 215, (6, 8, 3)).astype(np.float32)
    image = cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
    image[:, width // 2 :] *= 0.8
    image += rng.normal(0, 4, image.shape)
    return np.clip(image, 0, 255).astype(np.uint8)


def encode(image, subsampling=2, quality=92, **options):
    """JPEG bytes; subsampling as Pillow's: 0 is 4:4:4, 2 is 4:2:0."""
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=quality, subsampling=subsampling, **options)
    return stream.getvalue()


class ListSource:
    """Encoded examples in memory; an entry that is an exception is raised."""

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        image = self.images[index]
        if isinstance(image, Exception):
            raise image
        return {"image": image, "label": 10 * index, "file_name": f"n01_{index}.JPEG".encode()}


def small_source(num_examples=20):
    return ListSource([encode(picture(40 + i, 60, seed=i)) for i in range(num_examples)])


def loader(source, piece_size=4, on_bad_record="stop", num_classes=None):
    return workers.PieceLoader(
        source,
        functools.partial(workers.process_positions, piece_size=piece_size),
        Stream(len(source), seed=3).indices,
        functools.partial(imagenet.training_crop, seed=5),
        image_size=16,
        on_bad_record=on_bad_record,
        num_classes=num_classes,
    )


# Crops


def test_crop_boxes_follow_their_closed_form():
    """Of a large square, crops are uniform in area where u <= min(aspect, 1/aspect) lets them fit.

    With L the log aspect, uniform in +-ln 4/3: a try fits with probability
    (E exp(-|L|) - 0.08) / 0.92, and the area of those that fit has the mean
    (E exp(-2|L|) - 0.08^2) / 2 / (E exp(-|L|) - 0.08).
    """
    size, draws = 10_000, 20_000
    rng = np.random.default_rng(0)
    top, left, height, width = np.array(
        [imagenet.crop_box(size, size, rng) for _ in range(draws)], float
    ).T
    log_bound = np.log(4 / 3)
    mean_1 = (1 - 3 / 4) / log_bound
    mean_2 = (1 - (3 / 4) ** 2) / (2 * log_bound)
    area = height * width / size**2
    expected = (mean_2 - 0.08**2) / 2 / (mean_1 - 0.08)
    assert abs(area.mean() - expected) < 4 * area.std() / draws**0.5
    assert area.min() > 0.0799 and area.max() <= 1.0
    log_aspect = np.log(width / height)
    assert abs(log_aspect.mean()) < 4 * log_aspect.std() / draws**0.5
    assert np.abs(log_aspect).max() < log_bound + 1e-3
    for start, extent in ((top, height), (left, width)):
        place = start / np.maximum(size - extent, 1)
        assert abs(place.mean() - 0.5) < 4 * place.std() / draws**0.5
        assert start.min() >= 0 and (start + extent).max() <= size


@pytest.mark.parametrize(
    ("height", "width", "box"),
    [(50, 2000, (0, 966, 50, 67)), (2000, 50, (966, 0, 67, 50)), (1, 1, (0, 0, 1, 1))],
)
def test_crop_of_an_extreme_picture_is_central(height, width, box):
    assert imagenet.crop_box(height, width, np.random.default_rng(0)) == box


def test_half_of_the_crops_are_flipped_and_positions_differ():
    jpeg = encode(picture())
    crops = [imagenet.training_crop(jpeg, position, seed=1) for position in range(2000)]
    assert abs(np.mean([crop.flip for crop in crops]) - 0.5) < 4 * 0.5 / 2000**0.5
    assert len({crop.box for crop in crops}) > 1900


def test_crop_follows_from_seed_and_position():
    jpeg = encode(picture())
    crop = imagenet.training_crop(jpeg, 123, seed=7)
    assert imagenet.training_crop(jpeg, 123, seed=7) == crop
    assert imagenet.training_crop(jpeg, 124, seed=7) != crop
    assert imagenet.training_crop(jpeg, 123, seed=8) != crop


# Pixels


@pytest.mark.parametrize(
    "options",
    [{"subsampling": 2}, {"subsampling": 1}, {"subsampling": 0}, {"progressive": True}],
    ids=str,
)
@pytest.mark.parametrize("scale", [1, 2, 4, 8])
def test_decoding_the_upper_rows_alone_changes_no_pixel(options, scale):
    height, width = 171, 203
    jpeg = encode(picture(height, width), **options)
    small = (-(-height // scale), -(-width // scale))
    whole = simplejpeg.decode_jpeg(jpeg, min_height=small[0], min_width=small[1])
    assert whole.shape[:2] == small
    frame = imagenet._frame(jpeg)
    for bottom in range(1, height + 1):
        rows = -(-bottom // scale)
        upper = imagenet._decode_rows(jpeg, frame, bottom, scale, exact=True)
        assert len(upper) <= -(-(bottom + 2 * scale) // scale)
        np.testing.assert_array_equal(upper[:rows], whole[:rows])


@pytest.mark.parametrize("scale", imagenet.SCALES)
def test_scaled_decoding_is_close_to_decoding_in_full(scale):
    """Crops of four times the area and more: against full decoding and shrinking by area."""
    size = 32
    image = picture(scale * 60, scale * 70)
    jpeg = encode(image, quality=95)
    differences = []
    for position in range(200):
        crop = imagenet.training_crop(jpeg, position, seed=0)
        if imagenet.decode_scale(crop.box, size) != scale:
            continue
        out = np.empty((size, size, 3), np.uint8)
        imagenet.draw(jpeg, crop, out)
        top, left, height, width = crop.box
        whole = simplejpeg.decode_jpeg(jpeg)[top : top + height, left : left + width]
        reference = cv2.resize(whole, (size, size), interpolation=cv2.INTER_AREA)
        reference = reference[:, ::-1] if crop.flip else reference
        differences.append(out.astype(float) - reference)
    differences = np.array(differences)
    assert len(differences) >= 20
    assert abs(differences.mean()) < 0.5, "scaled decoding must not shift the brightness"
    assert differences.std() < 4.0, "of 0..255 levels"


def test_fast_decoding_is_close_to_exact_decoding():
    jpeg = encode(picture())
    frame = imagenet._frame(jpeg)
    exact = imagenet._decode_rows(jpeg, frame, 150, 1, exact=True).astype(float)
    difference = imagenet._decode_rows(jpeg, frame, 150, 1, exact=False) - exact
    assert 0 < difference.std() < 3.0 and abs(difference.mean()) < 0.1  # of 0..255 levels


def test_draw_flips_and_resizes_its_box():
    jpeg = encode(picture(), subsampling=0, quality=100)
    frame = imagenet._frame(jpeg)
    plain, flipped = np.empty((2, 24, 24, 3), np.uint8)
    imagenet.draw(jpeg, imagenet.Crop(frame, (30, 100, 24, 24)), plain)
    imagenet.draw(jpeg, imagenet.Crop(frame, (30, 100, 24, 24), flip=True), flipped)
    np.testing.assert_array_equal(plain, flipped[:, ::-1])
    assert np.abs(plain.astype(int) - picture()[30:54, 100:124]).mean() < 3


def test_centre_crop_is_resizing_and_cropping():
    """As Pillow's resize of the shorter side to 64, then the middle 56, up to its filter."""
    image = picture(300, 420)
    jpeg = encode(image, subsampling=0, quality=98)
    out = np.empty((56, 56, 3), np.uint8)
    imagenet.draw(jpeg, imagenet.evaluation_crop(jpeg, 0, image_size=56), out)
    resized = np.asarray(Image.fromarray(image).resize((90, 64), Image.Resampling.BILINEAR))
    reference = resized[4:60, 17:73]
    difference = out.astype(float) - reference
    assert abs(difference.mean()) < 0.5 and difference.std() < 4.0


@pytest.mark.parametrize(("size", "side"), [(224, 224 / 256), (299, 299 / 342)])
def test_centre_crop_ratios(size, side):
    crop = imagenet.evaluation_crop(encode(picture(1024, 1100)), 0, image_size=size)
    assert crop.box[2] == crop.box[3] == round(1024 * side)


def test_greyscale_becomes_three_equal_channels():
    jpeg = encode(picture()[..., 0])
    out = np.empty((32, 32, 3), np.uint8)
    imagenet.draw(jpeg, imagenet.training_crop(jpeg, 0, seed=0), out)
    assert out.std() > 1 and np.ptp(out, axis=-1).max() == 0


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda jpeg: jpeg[: len(jpeg) // 2], "cut short"),
        (lambda jpeg: b"\x89PNG" + jpeg[4:], "not a JPEG"),
        (lambda jpeg: jpeg[:40], "without a frame header"),
        (lambda jpeg: b"", "not a JPEG"),
    ],
)
def test_spoilt_pictures_are_refused(spoil, message):
    with pytest.raises(ValueError, match=message):
        imagenet.training_crop(spoil(encode(picture())), 0, seed=0)


# Pieces


def test_pieces_hold_what_their_positions_say():
    source = small_source()
    with workers.PieceStream(loader(source), start=3, stop=9) as stream:
        pieces = list(stream)
    positions = np.concatenate([piece["position"] for piece in pieces])
    np.testing.assert_array_equal(positions, np.arange(12, 36))
    indices = Stream(20, seed=3).indices(np.arange(12, 36))
    np.testing.assert_array_equal(np.concatenate([p["label"] for p in pieces]), 10 * indices)
    first = np.empty((16, 16, 3), np.uint8)
    jpeg = source[int(indices[0])]["image"]
    imagenet.draw(jpeg, imagenet.training_crop(jpeg, 12, seed=5), first)
    np.testing.assert_array_equal(pieces[0]["image"][0], first)
    assert {name: array.dtype for name, array in pieces[0].items()} == {
        "image": np.uint8,
        "label": np.int32,
        "position": np.uint32,
    }


def test_a_stream_started_later_goes_on_the_same():
    source = small_source()
    with workers.PieceStream(loader(source), stop=8) as stream:
        whole = list(stream)
    with workers.PieceStream(loader(source), start=5, stop=8) as stream:
        for piece, expected in zip(stream, whole[5:], strict=True):
            np.testing.assert_array_equal(piece["image"], expected["image"])


@pytest.mark.slow
def test_workers_change_nothing_and_stop_cleanly():
    source = small_source()
    with workers.PieceStream(loader(source), stop=7) as stream:
        expected = list(stream)
    with workers.PieceStream(loader(source), start=1, stop=7, num_workers=2) as stream:
        for piece, other in zip(stream, expected[1:], strict=True):
            for name in other:
                np.testing.assert_array_equal(piece[name], other[name])
    with workers.PieceStream(loader(source), num_workers=2) as stream:  # endless
        next(stream)
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_workers_outlive_the_signals_that_stop_a_run():
    """From their very start, and they still end with the stream."""
    with workers.PieceStream(loader(small_source()), num_workers=2) as stream:
        done = threading.Event()
        signaller = threading.Thread(target=signal_workers_until, args=(done,))
        signaller.start()
        try:
            pieces = [next(stream) for _ in range(40)]
        finally:
            done.set()
            signaller.join()
    positions = np.concatenate([piece["position"] for piece in pieces])
    np.testing.assert_array_equal(positions, np.arange(160))
    assert not multiprocessing.active_children()


def signal_workers_until(done):
    while not done.wait(0.02):
        for child in multiprocessing.active_children():
            os.kill(child.pid, signal.SIGTERM)
            os.kill(child.pid, signal.SIGINT)


READ_AND_DIE = """
import multiprocessing, os, signal
from batchgrow.data import workers
from test_imagenet_data import loader, small_source

if __name__ == "__main__":
    with workers.PieceStream(loader(small_source()), num_workers=2) as stream:
        next(stream)
        print(*(child.pid for child in multiprocessing.active_children()), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_workers_end_with_a_parent_that_was_killed(tmp_path):
    script = tmp_path / "read_and_die.py"
    script.write_text(READ_AND_DIE)
    root = os.path.dirname(os.path.dirname(__file__))
    environment = os.environ | {"PYTHONPATH": f"{root}{os.pathsep}{os.path.join(root, 'tests')}"}
    run = subprocess.run([sys.executable, script], capture_output=True, text=True, env=environment)
    assert run.returncode == -signal.SIGKILL, run.stderr
    left = [int(pid) for pid in run.stdout.split()]
    assert len(left) == 2
    deadline = time.monotonic() + 20
    while any(map(is_running, left)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(is_running, left))


def is_running(pid):
    """Whether there is such a process that is not just waiting to be reaped."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.slow
def test_a_bad_record_in_a_worker_arrives_with_its_name():
    source = small_source()
    source.images[7] = source.images[7][:200]
    with workers.PieceStream(loader(source), num_workers=1) as stream:
        with pytest.raises(workers.BadRecordError, match=r"bad record 7 \(n01_7.JPEG\)"):
            for _ in range(5):
                next(stream)


BAD = {
    "cut short": lambda jpeg: jpeg[:-30],
    "missing": lambda jpeg: IndexError("no such record"),
    "undecodable": lambda jpeg: jpeg.replace(b"\xff\xdb", b"\xff\xfe"),  # no quantisation
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_record_stops_with_index_and_name(kind):
    source = small_source()
    source.images[7] = BAD[kind](source.images[7])
    name = "name unknown" if kind == "missing" else "n01_7.JPEG"
    with workers.PieceStream(loader(source), stop=5) as stream:
        with pytest.raises(workers.BadRecordError, match=rf"bad record 7 \({name}\)"):
            list(stream)


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_record_is_replaced_by_the_next_and_counted(kind):
    source = small_source()
    good = loader(source)(0)
    where = int(np.flatnonzero(good["label"] == good["label"][1])[0])
    index = int(good["label"][1]) // 10
    source.images[index] = BAD[kind](source.images[index])
    with workers.PieceStream(loader(source, on_bad_record="replace"), stop=1) as stream:
        piece = next(stream)
    assert stream.num_replaced == 1
    assert piece["label"][where] == 10 * ((index + 1) % 20)
    others = np.arange(4) != where
    np.testing.assert_array_equal(piece["image"][others], good["image"][others])
    np.testing.assert_array_equal(piece["position"], good["position"])


def test_replacing_gives_up_where_everything_is_bad():
    source = ListSource([OSError("disk gone")] * 20)
    with pytest.raises(workers.BadRecordError, match="8 bad records in a row.*disk gone"):
        loader(source, on_bad_record="replace")(0)


@pytest.mark.parametrize("on_bad_record", ["stop", "replace"])
def test_a_label_that_is_no_class_always_stops(on_bad_record):
    """Labels are 0, 10, ..., 190."""
    load = loader(small_source(), piece_size=20, on_bad_record=on_bad_record, num_classes=190)
    message = r"bad record 19 \(n01_19.JPEG\): model.num_classes is 190, but its label is 190; set"
    with pytest.raises(workers.BadRecordError, match=f"{message} the field to 191 or more"):
        load(0)
    assert len(loader(small_source(), piece_size=20, num_classes=191)(0)["label"]) == 20


def test_a_negative_label_is_no_class():
    source = Unlabelled([encode(picture(40, 60))] * 4)
    with pytest.raises(workers.BadRecordError, match="label is -1; take a split .* labelled"):
        loader(source, num_classes=10)(0)


class Unlabelled(ListSource):
    def __getitem__(self, index):
        return super().__getitem__(index) | {"label": -1}


def test_unknown_on_bad_record():
    with pytest.raises(ValueError, match="on_bad_record 'skip' is none of stop, replace"):
        loader(small_source(1), on_bad_record="skip")


@pytest.mark.parametrize("process_count", [1, 3])
def test_evaluation_sees_every_example_once(process_count):
    source = small_source(20)
    counts, lengths = np.zeros(20, int), []
    for process_index in range(process_count):
        pieces = list(
            workers.evaluation_pieces(
                source,
                functools.partial(imagenet.evaluation_crop, image_size=16),
                image_size=16,
                piece_size=3,
                process_index=process_index,
                process_count=process_count,
            )
        )
        lengths.append(len(pieces))
        for piece in pieces:
            assert piece["image"].shape == (3, 16, 16, 3) and piece["mask"].dtype == np.float32
            np.add.at(counts, piece["label"][piece["mask"] > 0] // 10, 1)
    assert (counts == 1).all()
    assert len(set(lengths)) == 1
