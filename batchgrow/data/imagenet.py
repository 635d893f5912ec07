"""Encoded pictures to uint8 arrays on the host: Inception crop and flip, or resize and centre crop.

Only what a crop needs is decoded: nothing below it, and, where the crop is at least twice as large
as the result, at half, quarter or eighth size (the decoder then averages, as a resize should). The
crop itself is drawn before, from the size in the header, so its distribution is what it would be.
Pixels stay uint8; they are normalised on the device.
"""

import math

import cv2
import numpy as np
import simplejpeg

AREA = (0.08, 1.0)  # of the crop, as a share of the picture (Szegedy et al. 2015)
ASPECT = (3 / 4, 4 / 3)  # width / height of the crop
MAX_TRIES = 10
SCALES = (8, 4, 2)  # at which the decoder has fast code
MCU = 16  # rows: the most that one row of a JPEG's coding units takes

Box = tuple[int, int, int, int]


def example_rng(seed: int, position: int) -> np.random.Generator:
    """The generator of one example's augmentation: counter-based, keyed by (seed, position)."""
    return np.random.Generator(np.random.Philox(key=np.array([seed, position], np.uint64)))


def decode_and_random_resized_crop(
    jpeg: bytes, image_size: int, rng: np.random.Generator
) -> np.ndarray:
    """A random crop, resized (bilinear) and flipped half of the time: uint8 (size, size, 3).

    Raises:
      ValueError: where `jpeg` cannot be decoded or is cut short.
    """
    frame = _frame(jpeg)
    box = crop_box(frame[0], frame[1], rng)
    image = _decode_box(jpeg, frame, box, image_size, cv2.INTER_LINEAR)
    return image[:, ::-1] if rng.random() < 0.5 else image


def decode_and_centre_crop(jpeg: bytes, image_size: int, resize_size: int) -> np.ndarray:
    """The middle of the picture whose shorter side becomes `resize_size`: uint8 (size, size, 3).

    Resizing to 256 (342) and cropping 224 (299) is the same as cropping 224/256 (299/342) of the
    shorter side and resizing that, which spares the rest. Shrinks by averaging areas, so that
    nothing aliases; enlarges bilinearly.

    Raises:
      ValueError: where `jpeg` cannot be decoded or is cut short.
    """
    frame = _frame(jpeg)
    height, width = frame[:2]
    side = max(1, round(min(height, width) * image_size / resize_size))
    box = ((height - side) // 2, (width - side) // 2, side, side)
    interpolation = cv2.INTER_AREA if side > image_size else cv2.INTER_LINEAR
    return _decode_box(jpeg, frame, box, image_size, interpolation)


def training_image(jpeg: bytes, position: int, *, image_size: int, seed: int) -> np.ndarray:
    """`decode_and_random_resized_crop` by the key of a stream position."""
    return decode_and_random_resized_crop(jpeg, image_size, example_rng(seed, position))


def evaluation_image(jpeg: bytes, position: int, *, image_size: int) -> np.ndarray:
    """`decode_and_centre_crop` at the usual ratio: 224 of 256, 299 of 342."""
    del position  # of the stream: nothing is random here
    return decode_and_centre_crop(jpeg, image_size, round(image_size * 256 / 224))


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


def _decode_box(
    jpeg: bytes, frame: tuple[int, int, int], box: Box, image_size: int, interpolation: int
) -> np.ndarray:
    """The pixels of `box` as uint8 (image_size, image_size, 3).

    At scale s the box's edges are rounded outwards to whole pixels of the smaller picture.
    """
    top, left, crop_height, crop_width = box
    scale = decode_scale(box, image_size)
    image = _decode_rows(jpeg, frame, top + crop_height, scale)
    rows = slice(top // scale, -(-(top + crop_height) // scale))
    columns = slice(left // scale, -(-(left + crop_width) // scale))
    size = (image_size, image_size)
    return cv2.resize(image[rows, columns], size, interpolation=interpolation)


def _decode_rows(jpeg: bytes, frame: tuple[int, int, int], bottom: int, scale: int) -> np.ndarray:
    """At least the rows above `bottom`, decoded at 1/scale: the same pixels as of the whole picture.

    simplejpeg decodes whole pictures, so it is told that this one ends soon after `bottom`: a
    decoder works from the top, and stops at the height in the header. One coding row more is kept,
    from which the chroma of the last wanted row is interpolated.
    """
    height, width, offset = frame
    rows = min(height, bottom + 2 * scale)
    shortened = bytearray(jpeg)
    shortened[offset : offset + 2] = rows.to_bytes(2, "big")
    # The picture's remaining bytes are "extraneous" now, a mere warning: hence not strict.
    minimum = (0, 0) if scale == 1 else (-(-rows // scale), -(-width // scale))
    return simplejpeg.decode_jpeg(
        shortened, "RGB", min_height=minimum[0], min_width=minimum[1], strict=False
    )


def _frame(jpeg: bytes) -> tuple[int, int, int]:
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
            return height, int.from_bytes(jpeg[size + 2 : size + 4], "big"), size
        at += 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
    raise ValueError(f"JPEG without a frame header: {len(jpeg)} bytes")
