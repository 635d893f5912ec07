"""JPEG bytes to uint8 images on the host: random crop and flip, or resize and centre crop.

There are two steps. First, a `Crop` is chosen from the size in the file's header. Then `draw`
decodes and resizes that crop. So how pixels are made does not affect how crops are distributed, and
`draw` decodes only what it needs: no rows below the crop, and where the crop is at least twice as
large as the result, it decodes at half, quarter or eighth size (the decoder then averages, as a
resize should). Images stay uint8; they are normalised on the device.

The Exif orientation is ignored: an image is used as its pixels are stored. The usual ImageNet
pipelines do the same.
"""

import math
import threading
from dataclasses import dataclass

import cv2
import numpy as np
import simplejpeg

AREA = (0.08, 1.0)  # of the crop, as a share of the picture (Szegedy et al. 2015)
ASPECT = (3 / 4, 4 / 3)  # width / height of the crop
MAX_TRIES = 10  # random crops before the central one is taken
SCALES = (8, 4, 2)  # the decoder has fast code for these

Box = tuple[int, int, int, int]  # top, left, height, width
Frame = tuple[int, int, int]  # height, width, byte offset of the height in the file

_thread = threading.local()


@dataclass(frozen=True)
class Crop:
    """The part of an image that `draw` decodes, and how.

    Attributes:
      frame: the frame of the whole image.
      box: the box of the crop, in pixels of the whole image.
      flip: whether to flip it from left to right.
      smooth: whether to decode exactly and shrink by averaging areas. Otherwise chroma is decoded
        in a faster way and the crop is resized bilinearly.
    """

    frame: Frame
    box: Box
    flip: bool = False
    smooth: bool = False


def training_crop(jpeg: bytes, position: int, *, seed: int) -> Crop:
    """Returns the random crop and flip of the image at a stream position."""
    return random_resized_crop(jpeg, example_rng(seed, position))


def evaluation_crop(jpeg: bytes, position: int, *, image_size: int) -> Crop:
    """The centre crop with the usual ratio: 224 of 256, 299 of 342."""
    del position  # nothing is random here
    return centre_crop(jpeg, image_size, round(image_size * 256 / 224))


def example_rng(seed: int, position: int) -> np.random.Generator:
    """The random generator of one example's augmentation: Philox, keyed by (seed, position)."""
    return np.random.Generator(np.random.Philox(key=np.array([seed, position], np.uint64)))


def random_resized_crop(jpeg: bytes, rng: np.random.Generator) -> Crop:
    """For training: `crop_box`, flipped with probability 1/2.

    Raises:
      ValueError: if `jpeg` is not a JPEG, or is truncated.
    """
    frame = _frame(jpeg)
    return Crop(frame, crop_box(frame[0], frame[1], rng), flip=rng.random() < 0.5)


def centre_crop(jpeg: bytes, image_size: int, resize_size: int) -> Crop:
    """For evaluation: resize the shorter side to `resize_size`, then crop the middle `image_size`.

    This crops first, `image_size / resize_size` of the shorter side, and resizes only that.

    Raises:
      ValueError: if `jpeg` is not a JPEG, or is truncated.
    """
    frame = _frame(jpeg)
    height, width = frame[:2]
    side = max(1, round(min(height, width) * image_size / resize_size))
    return Crop(frame, ((height - side) // 2, (width - side) // 2, side, side), smooth=True)


def draw(jpeg: bytes, crop: Crop, out: np.ndarray) -> None:
    """Decodes and resizes a crop into `out`, uint8 (size, size, 3).

    Decoding at 1/s of the size rounds the crop's edges outwards to whole pixels of the smaller
    image. Crops smaller than `out` are enlarged bilinearly.

    Raises:
      ValueError: if the image cannot be decoded. Flipped bits inside the compressed data are not
        detected: the decoder goes on with wrong pixels (ArrayRecord has checksums of its own).
    """
    top, left, height, width = crop.box
    scale = decode_scale(crop.box, out.shape[0])
    image = _decode_rows(jpeg, crop.frame, top + height, scale, exact=crop.smooth)
    rows = slice(top // scale, -(-(top + height) // scale))
    columns = slice(left // scale, -(-(left + width) // scale))
    shrinks = height > out.shape[0]
    interpolation = cv2.INTER_AREA if crop.smooth and shrinks else cv2.INTER_LINEAR
    cv2.resize(image[rows, columns], out.shape[:2], dst=out, interpolation=interpolation)
    if crop.flip:
        cv2.flip(out, 1, dst=out)


def crop_box(height: int, width: int, rng: np.random.Generator) -> Box:
    """(top, left, height, width) of a random crop, as torchvision's RandomResizedCrop draws it.

    The area is uniform in 8% to 100% of the image, the logarithm of the aspect ratio is uniform
    between those of 3/4 and 4/3, and the place is uniform. After ten crops that do not fit, it is
    the largest central crop whose aspect ratio is within these bounds.
    """
    low, high = math.log(ASPECT[0]), math.log(ASPECT[1])
    for _ in range(MAX_TRIES):
        area = height * width * (AREA[0] + (AREA[1] - AREA[0]) * rng.random())
        aspect = math.exp(low + (high - low) * rng.random())
        crop_width, crop_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top = int(rng.random() * (height - crop_height + 1))
            left = int(rng.random() * (width - crop_width + 1))
            return top, left, crop_height, crop_width
    crop_width = min(width, max(1, round(height * ASPECT[1])))
    crop_height = min(height, max(1, round(width / ASPECT[0])))
    return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width


def decode_scale(box: Box, image_size: int) -> int:
    """The largest of 1, 2, 4, 8 at which the decoded crop is at least as large as the result."""
    shorter = min(box[2], box[3])
    return next((scale for scale in SCALES if shorter >= scale * image_size), 1)


def _decode_rows(jpeg: bytes, frame: Frame, bottom: int, scale: int, exact: bool) -> np.ndarray:
    """The rows above `bottom` and perhaps a few more, at 1/scale, with the whole image's pixels.

    simplejpeg decodes whole images only, so the height in a copy of the header is set to where the
    crop ends; the decoder stops there. It is set two rows further down, as the chroma of the last
    row of the crop is interpolated from those rows.

    Unless `exact`, chroma is repeated instead of interpolated: this is 5% faster, differs by a few
    levels, and has no bias. (The faster inverse DCT gains nothing more, and is 0.65 levels darker.)

    The result is in a buffer of this thread, valid until its next call. A new array for each image
    would take 10% longer, in page faults.
    """
    height, width, offset = frame
    rows = min(height, bottom + 2 * scale)
    shortened = bytearray(jpeg)
    shortened[offset : offset + 2] = rows.to_bytes(2, "big")
    scaled = (-(-rows // scale), -(-width // scale))
    minimum = (0, 0) if scale == 1 else scaled
    return simplejpeg.decode_jpeg(
        shortened,
        "RGB",
        fastupsample=not exact,
        min_height=minimum[0],
        min_width=minimum[1],
        buffer=_buffer(scaled[0] * scaled[1] * 3),
        strict=False,  # there are bytes left, of the rows below
    )


def _buffer(size: int) -> np.ndarray:
    if getattr(_thread, "buffer", None) is None or _thread.buffer.size < size:
        _thread.buffer = np.empty(size, np.uint8)
    return _thread.buffer


def _frame(jpeg: bytes) -> Frame:
    """(height, width, byte offset of the height in `jpeg`), from the frame header.

    Raises:
      ValueError: if there is no frame header, or no end marker after it: the file is truncated, and
        the decoder would fill the missing part with grey.
    """
    if jpeg[:2] != b"\xff\xd8":
        raise ValueError(f"not a JPEG file: {len(jpeg)} bytes that start with {jpeg[:4]!r}")
    at = 2
    while at + 9 < len(jpeg) and jpeg[at] == 0xFF:
        marker = jpeg[at + 1]
        if marker == 0xFF:  # padding
            at += 1
            continue
        # C0 to CF are frame headers, except for Huffman tables (C4), extensions (C8) and arithmetic
        # tables (CC).
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            if jpeg.rfind(b"\xff\xd9", at) < 0:
                raise ValueError(f"truncated JPEG file: its {len(jpeg)} bytes have no end marker")
            size = at + 5
            height = int.from_bytes(jpeg[size : size + 2], "big")
            width = int.from_bytes(jpeg[size + 2 : size + 4], "big")
            if not height or not width:
                raise ValueError(f"JPEG file with an invalid size of {width} x {height} pixels")
            return height, width, size
        at += 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
    raise ValueError(f"JPEG file without a frame header in its {len(jpeg)} bytes")
