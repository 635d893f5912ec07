"""Crops, partial and scaled decoding, and what happens to bad records."""

import functools
import io

import cv2
import numpy as np
import pytest
import simplejpeg
from PIL import Image, ImageOps

from batchgrow.config.data import open_data
from batchgrow.data import jpeg, workers
from configs import imagenet_resnet50
from experiments.make_fake_imagenet import with_orientation


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


def loader(source, on_bad_record="stop", num_classes=None):
    crop = functools.partial(jpeg.training_crop, seed=5)
    return workers.JpegLoader(source, crop, 16, on_bad_record, num_classes)


def load(source, indices, first_position=0, **options):
    """(images, labels, lines about replaced records) of the examples at these indices."""
    images = np.empty((len(indices), 16, 16, 3), np.uint8)
    positions = first_position + np.arange(len(indices))
    return images, *loader(source, **options)(np.array(indices), positions, images)


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
        [jpeg.crop_box(size, size, rng) for _ in range(draws)], float
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
    assert jpeg.crop_box(height, width, np.random.default_rng(0)) == box


def test_half_of_the_crops_are_flipped_and_positions_differ():
    encoded = encode(picture())
    crops = [jpeg.training_crop(encoded, position, seed=1) for position in range(2000)]
    assert abs(np.mean([crop.flip for crop in crops]) - 0.5) < 4 * 0.5 / 2000**0.5
    assert len({crop.box for crop in crops}) > 1900


def test_crop_follows_from_seed_and_position():
    encoded = encode(picture())
    crop = jpeg.training_crop(encoded, 123, seed=7)
    assert jpeg.training_crop(encoded, 123, seed=7) == crop
    assert jpeg.training_crop(encoded, 124, seed=7) != crop
    assert jpeg.training_crop(encoded, 123, seed=8) != crop


# Pixels


@pytest.mark.parametrize(
    "options",
    [{"subsampling": 2}, {"subsampling": 1}, {"subsampling": 0}, {"progressive": True}],
    ids=str,
)
@pytest.mark.parametrize("scale", [1, 2, 4, 8])
def test_decoding_the_upper_rows_alone_changes_no_pixel(options, scale):
    height, width = 171, 203
    encoded = encode(picture(height, width), **options)
    small = (-(-height // scale), -(-width // scale))
    whole = simplejpeg.decode_jpeg(encoded, min_height=small[0], min_width=small[1])
    assert whole.shape[:2] == small
    frame = jpeg._frame(encoded)
    for bottom in range(1, height + 1):
        rows = -(-bottom // scale)
        upper = jpeg._decode_rows(encoded, frame, bottom, scale, exact=True)
        assert len(upper) <= -(-(bottom + 2 * scale) // scale)
        np.testing.assert_array_equal(upper[:rows], whole[:rows])


@pytest.mark.parametrize("scale", jpeg.SCALES)
def test_scaled_decoding_is_close_to_decoding_in_full(scale):
    """Crops of four times the area and more: against full decoding and shrinking by area."""
    size = 32
    image = picture(scale * 60, scale * 70)
    encoded = encode(image, quality=95)
    differences = []
    for position in range(200):
        crop = jpeg.training_crop(encoded, position, seed=0)
        if jpeg.decode_scale(crop.box, size) != scale:
            continue
        out = np.empty((size, size, 3), np.uint8)
        jpeg.draw(encoded, crop, out)
        top, left, height, width = crop.box
        whole = simplejpeg.decode_jpeg(encoded)[top : top + height, left : left + width]
        reference = cv2.resize(whole, (size, size), interpolation=cv2.INTER_AREA)
        reference = reference[:, ::-1] if crop.flip else reference
        differences.append(out.astype(float) - reference)
    differences = np.array(differences)
    assert len(differences) >= 20
    assert abs(differences.mean()) < 0.5, "scaled decoding must not shift the brightness"
    assert differences.std() < 4.0, "of 0..255 levels"


def test_fast_decoding_is_close_to_exact_decoding():
    encoded = encode(picture())
    frame = jpeg._frame(encoded)
    exact = jpeg._decode_rows(encoded, frame, 150, 1, exact=True).astype(float)
    difference = jpeg._decode_rows(encoded, frame, 150, 1, exact=False) - exact
    assert 0 < difference.std() < 3.0 and abs(difference.mean()) < 0.1  # of 0..255 levels


def test_draw_flips_and_resizes_its_box():
    encoded = encode(picture(), subsampling=0, quality=100)
    frame = jpeg._frame(encoded)
    plain, flipped = np.empty((2, 24, 24, 3), np.uint8)
    jpeg.draw(encoded, jpeg.Crop(frame, (30, 100, 24, 24)), plain)
    jpeg.draw(encoded, jpeg.Crop(frame, (30, 100, 24, 24), flip=True), flipped)
    np.testing.assert_array_equal(plain, flipped[:, ::-1])
    assert np.abs(plain.astype(int) - picture()[30:54, 100:124]).mean() < 3


def test_centre_crop_is_resizing_and_cropping():
    """As Pillow's resize of the shorter side to 64, then the middle 56, up to its filter."""
    image = picture(300, 420)
    encoded = encode(image, subsampling=0, quality=98)
    out = np.empty((56, 56, 3), np.uint8)
    jpeg.draw(encoded, jpeg.evaluation_crop(encoded, 0, image_size=56), out)
    resized = np.asarray(Image.fromarray(image).resize((90, 64), Image.Resampling.BILINEAR))
    reference = resized[4:60, 17:73]
    difference = out.astype(float) - reference
    assert abs(difference.mean()) < 0.5 and difference.std() < 4.0


@pytest.mark.parametrize(("size", "side"), [(224, 224 / 256), (299, 299 / 342)])
def test_centre_crop_ratios(size, side):
    crop = jpeg.evaluation_crop(encode(picture(1024, 1100)), 0, image_size=size)
    assert crop.box[2] == crop.box[3] == round(1024 * side)


def test_greyscale_becomes_three_equal_channels():
    encoded = encode(picture()[..., 0])
    out = np.empty((32, 32, 3), np.uint8)
    jpeg.draw(encoded, jpeg.training_crop(encoded, 0, seed=0), out)
    assert out.std() > 1 and np.ptp(out, axis=-1).max() == 0


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda encoded: encoded[: len(encoded) // 2], "truncated JPEG"),
        (lambda encoded: b"\x89PNG" + encoded[4:], "not a JPEG"),
        (lambda encoded: encoded[:40], "without a frame header"),
        (lambda encoded: b"", "not a JPEG"),
    ],
)
def test_spoilt_pictures_are_refused(spoil, message):
    with pytest.raises(ValueError, match=message):
        jpeg.training_crop(spoil(encode(picture())), 0, seed=0)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_exif_orientation_is_ignored(orientation):
    """An image is used as its pixels are stored, although viewers rotate it."""
    plain = encode(picture())
    rotated = with_orientation(plain, orientation)
    with Image.open(io.BytesIO(rotated)) as image:
        assert image.getexif() == {0x0112: orientation}
        assert (ImageOps.exif_transpose(image).size != image.size) == (orientation in (6, 8))
    images = np.empty((2, 16, 16, 3), np.uint8)
    for file, image in zip((plain, rotated), images, strict=True):
        jpeg.draw(file, jpeg.training_crop(file, 9, seed=0), image)
    np.testing.assert_array_equal(*images)


# Loading


def test_examples_follow_from_index_and_position():
    source = small_source()
    images, labels, replaced = load(source, [3, 3, 12], first_position=2**40)
    assert labels.dtype == np.int32 and labels.tolist() == [30, 30, 120] and replaced == []
    expected = np.empty((16, 16, 3), np.uint8)
    for image, index, position in zip(images, [3, 3, 12], range(2**40, 2**40 + 3), strict=True):
        encoded = source[index]["image"]
        jpeg.draw(encoded, jpeg.training_crop(encoded, position, seed=5), expected)
        np.testing.assert_array_equal(image, expected)
    assert (images[0] != images[1]).any()


BAD = {
    "cut short": lambda encoded: encoded[:-30],
    "missing": lambda encoded: IndexError("no such record"),
    "undecodable": lambda encoded: encoded.replace(b"\xff\xdb", b"\xff\xfe"),  # no quantisation
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_record_stops_with_index_and_name(kind):
    source = small_source()
    source.images[7] = BAD[kind](source.images[7])
    name = "name unknown" if kind == "missing" else "n01_7.JPEG"
    message = rf"bad record 7 \({name}\): .*; repair .* set data.on_bad_record to 'replace'"
    with pytest.raises(workers.BadRecordError, match=message):
        load(source, [6, 7, 8])


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("index", [7, 19])
def test_a_bad_record_is_replaced_by_the_next(kind, index):
    """The first follows the last. Only its own place changes, with the crop of that position."""
    source = small_source()
    following = (index + 1) % 20
    good = load(source, [2, index, 4])[0]
    expected = load(source, [2, following, 4])[0]
    source.images[index] = BAD[kind](source.images[index])
    images, labels, replaced = load(source, [2, index, 4], on_bad_record="replace")
    assert labels.tolist() == [20, 10 * following, 40]
    np.testing.assert_array_equal(images, expected)
    np.testing.assert_array_equal(images[[0, 2]], good[[0, 2]])
    assert len(replaced) == 1 and replaced[0].line.startswith(f"bad record {index} (")


def test_replacing_gives_up_where_everything_is_bad():
    source = ListSource([OSError("disk gone")] * 20)
    with pytest.raises(workers.BadRecordError, match="record 10 .*disk gone; 8 records in a row"):
        load(source, [3], on_bad_record="replace")


def test_replacing_goes_on_up_to_the_eighth():
    source = small_source()
    source.images[:7] = [OSError("gone")] * 7
    _, labels, replaced = load(source, [0], on_bad_record="replace")
    assert labels.tolist() == [70] and len(replaced) == 7


@pytest.mark.parametrize("on_bad_record", ["stop", "replace"])
def test_a_label_that_is_no_class_always_stops(on_bad_record):
    """Labels are 0, 10, ..., 190."""
    message = r"bad record 19 \(n01_19.JPEG\): its label is 190, but model.num_classes is 190; set"
    with pytest.raises(workers.BadRecordError, match=f"{message} .* to 191 or more"):
        load(small_source(), range(20), on_bad_record=on_bad_record, num_classes=190)
    assert len(load(small_source(), range(20), num_classes=191)[1]) == 20


def test_a_negative_label_is_no_class():
    source = Unlabelled([encode(picture(40, 60))] * 4)
    with pytest.raises(
        workers.BadRecordError, match="label is -1, .*; use a split that has labels"
    ):
        load(source, [0], num_classes=10)


class Unlabelled(ListSource):
    def __getitem__(self, index):
        return super().__getitem__(index) | {"label": -1}


def test_workers_take_no_share_of_a_split():
    config = imagenet_resnet50.get_config()
    config.data.test_share = 0.1
    with pytest.raises(ValueError, match="data.test_share 0.1: worker processes read splits"):
        open_data(config, "test", to_read=False)


def test_a_bad_test_record_is_never_replaced():
    config = imagenet_resnet50.get_config()
    config.data.on_bad_record = "replace"
    found = [open_data(config, part, to_read=False).on_bad_record for part in ("train", "test")]
    assert found == ["replace", "stop"]


def test_unknown_on_bad_record():
    with pytest.raises(ValueError, match="on_bad_record is 'skip'; it must be 'stop' or 'replace'"):
        loader(small_source(1), on_bad_record="skip")
