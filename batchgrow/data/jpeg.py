"""Encoded pictures to uint8 arrays on the host: Inception crop and flip, or resize and centre crop.

In two steps. A `Crop` is drawn from the size in the picture's header; then `draw` decodes and
resizes. So the distribution of crops cannot depend on how pixels are made, and `draw` makes only
those that the crop needs: it decodes nothing below the crop, and where the crop is at least twice
as large as the result, it decodes at half, quarter or eighth size (the decoder then averages, as
a resize should). Pixels stay uint8; they are normalised on the device.
"""

import math
import threading
from dataclasses import dataclass

import cv2
import numpy as np
import simplejpeg

AREA = (0.08, 1.0)  # of the crop, as a share of the picture (Szegedy et al. 2015)
ASPECT = (3 / 4, 4 / 3)  # width / height of the crop
MAX_TRIES = 10
SCALES = (8, 4, 2)  # at which the decoder has fast code

Box = tuple[int, int, int, int]  # top, left, height, width
Frame = tuple[int, int, int]  # height, width, offset of the height in the file

_thread = threading.local()


@dataclass(frozen=True)
class Crop:
    """What `draw` makes of a picture.

    Attributes:
      frame: of the picture.
      box: of the crop, within the picture.
      flip: left to right.
      smooth: shrink by averaging areas and decode exactly, rather than bilinearly and fast.
    """

    frame: Frame
    box: Box
    flip: bool = False
    smooth: bool = False


def training_crop(jpeg: bytes, position: int, *, seed: int) -> Crop:
    """The random crop and flip of the picture that stands at a stream position."""
    return random_resized_crop(jpeg, example_rng(seed, position))


def evaluation_crop(jpeg: bytes, position: int, *, image_size: int) -> Crop:
    """The centre crop at the usual ratio: 224 of 256, 299 of 342."""
    del position  # of the stream: nothing is random here
    return centre_crop(jpeg, image_size, round(image_size * 256 / 224))


def example_rng(seed: int, position: int) -> np.random.Generator:
    """The generator of one example's augmentation: counter-based, keyed by (seed, position)."""
    return np.random.Generator(np.random.Philox(key=np.array([seed, position], np.uint64)))


def random_resized_crop(jpeg: bytes, rng: np.random.Generator) -> Crop:
    """For training: `crop_box`, flipped half of the time.

    Raises:
      ValueError: where `jpeg` is none, or cut short.
    """
    frame = _frame(jpeg)
    return Crop(frame, crop_box(frame[0], frame[1], rng), flip=rng.random() < 0.5)


def centre_crop(jpeg: bytes, image_size: int, resize_size: int) -> Crop:
    """For evaluation: the middle `image_size` of the picture whose shorter side is `resize_size`.

    To resize to 256 (342) and crop 224 (299) is to crop 224/256 (299/342) of the shorter side and
    resize that, which spares the rest.

    Raises:
      ValueError: where `jpeg` is none, or cut short.
    """
    frame = _frame(jpeg)
    height, width = frame[:2]
    side = max(1, round(min(height, width) * image_size / resize_size))
    return Crop(frame, ((height - side) // 2, (width - side) // 2, side, side), smooth=True)


def draw(jpeg: bytes, crop: Crop, out: np.ndarray) -> None:
    """Decodes and resizes a crop into `out`, uint8 (size, size, 3).

    At scale s the crop's edges are rounded outwards to whole pixels of the smaller picture. Crops
    smaller than `out` are enlarged bilinearly.

    Raises:
      ValueError: where the picture cannot be decoded. Wrong bits in the middle of one are not found
        here: the decoder goes on, with wrong pixels (ArrayRecord has checksums of its own).
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

    Area uniform in 8-100% of the picture, log aspect ratio uniform in 3/4 to 4/3, place uniform;
    after ten crops that do not fit, the largest central one whose aspect is within the bounds.
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
    """1, 2, 4 or 8: how much smaller the picture may be decoded, the crop staying large enough."""
    shorter = min(box[2], box[3])
    return next((scale for scale in SCALES if shorter >= scale * image_size), 1)


def _decode_rows(jpeg: bytes, frame: Frame, bottom: int, scale: int, exact: bool) -> np.ndarray:
    """The rows above `bottom`, and perhaps some more, decoded at 1/scale; as in the whole picture.

    simplejpeg decodes whole pictures, so it is told that this one ends where the crop does: a
    decoder works from the top and stops at the height in the header. Two rows more are kept, from
    which the chroma of the last wanted row is interpolated.

    Where not `exact`, chroma is repeated instead of interpolated: 5% faster, within a few levels,
    and no bias. (The faster inverse DCT, which darkens by 0.65 levels, gains nothing more.)

    The result lives in a buffer of this thread until its next call: a fresh array for every picture
    costs a tenth of the time, in page faults.
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
        strict=False,  # the bytes of the rows left out draw a warning
    )


def _buffer(size: int) -> np.ndarray:
    if getattr(_thread, "buffer", None) is None or _thread.buffer.size < size:
        _thread.buffer = np.empty(size, np.uint8)
    return _thread.buffer


def _frame(jpeg: bytes) -> Frame:
    """(height, width, offset of the height in `jpeg`), from the frame header.

    Raises:
      ValueError: where there is none, or no end marker after it (the picture is cut short; the
        decoder would fill it up with grey).
    """
    if jpeg[:2] != b"\xff\xd8":
        raise ValueError(f"not a JPEG: {len(jpeg)} bytes that start with {jpeg[:4].hex()}")
    at = 2
    while at + 9 < len(jpeg) and jpeg[at] == 0xFF:
        marker = jpeg[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        # C0 to CF are frame headers, but for Huffman tables, extensions and arithmetic tables.
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            if jpeg.rfind(b"\xff\xd9", at) < 0:
                raise ValueError(f"JPEG cut short: {len(jpeg)} bytes without an end marker")
            size = at + 5
            height = int.from_bytes(jpeg[size : size + 2], "big")
            width = int.from_bytes(jpeg[size + 2 : size + 4], "big")
            if not height or not width:
                raise ValueError(f"JPEG of {width} x {height} pixels")
            return height, width, size
        at += 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
    raise ValueError(f"JPEG without a frame header: {len(jpeg)} bytes")
