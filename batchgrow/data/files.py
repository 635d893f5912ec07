"""Data sets in files: arrays of NumPy, tables with commas, texts, and folders of images."""

import csv
import math
import pathlib
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import cv2
import numpy as np

from batchgrow.data.datasets import Dataset
from batchgrow.data.pictures import make_pictures
from batchgrow.data.records import BadRecordError
from batchgrow.data.series import divided, standardised
from batchgrow.data.source import Part, Source, make_dataset, make_text_dataset

PICTURES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


def open_npz(source: Source, part: Part) -> Dataset:
    """Opens the arrays of an .npz file: `NAME_SPLIT` (x_train, x_test), or else `NAME`.

    Raises:
      ValueError: if the file is damaged or not an .npz file, or its arrays are unusable (see
        `make_dataset`).
    """
    path = source.path(part)
    if not zipfile.is_zipfile(path):
        raise ValueError(f"data.name {source.name!r}: {path} is not an .npz file")
    if reason := _damage(path):
        raise ValueError(
            f"data.name {source.name!r}: {path} cannot be read ({reason}); replace it by a copy "
            "that is whole"
        )
    with np.load(path, allow_pickle=False) as file:
        names, split = list(file), source.split(part)
        suffix = f"_{split}" if any(name.endswith(f"_{split}") for name in names) else ""
        own = f"_{source.test_split}"
        has_own = bool(suffix) and suffix != own and any(name.endswith(own) for name in names)
        if has_own and source.test_share is not None:
            raise ValueError(
                f"data.name {source.name!r} has a test split, the arrays that end in {own}; leave "
                f"data.test_share at None (it is {source.test_share})"
            )
        arrays = {
            name.removesuffix(suffix): _read(file, name, source)
            for name in names
            if name.endswith(suffix)
        }
    has_parts = bool(suffix) and source.test_share is None
    whole = source.has_paths or has_parts
    return make_dataset(arrays, source, part, whole=whole, suffix=suffix)


def _damage(path: pathlib.Path) -> str | None:
    """What is damaged in a zip file, by its checksums; None if nothing is. NumPy misses some."""
    try:
        with zipfile.ZipFile(path) as file:
            return file.testzip()
    except Exception as error:  # Damage can cause any error.
        return f"{type(error).__name__}: {error}"


def _read(file: Any, name: str, source: Source) -> np.ndarray:
    try:
        return file[name]
    except ValueError as error:  # NumPy loads no objects, which could run any program
        raise ValueError(
            f"data.name {source.name!r}: the array {name!r} has dtype object; it must hold "
            "numbers, of one shape for all examples"
        ) from error


def open_images(source: Source, part: Part) -> Dataset:
    """Opens images in one folder for each class. Classes are numbered in sorted order.

    Raises:
      ValueError: if there are no class folders, or one is empty.
    """
    root = source.path(part)
    folders = sorted(f for f in root.iterdir() if f.is_dir()) if root.is_dir() else []
    if not folders:
        raise ValueError(
            f"data.name {source.name!r}: {root.absolute()} has no folders; put the images of each "
            "class in a folder of its own"
        )
    files, labels = [], []
    for label, folder in enumerate(folders):
        found = sorted(file for file in folder.iterdir() if file.suffix.lower() in PICTURES)
        if not found:
            inside = any(file.is_dir() for file in folder.iterdir())
            hint = f"; if {folder.name!r} is a split, write images:FOLDER/{{split}}" * inside
            raise ValueError(
                f"data.name {source.name!r}: the class folder {folder} has no images "
                f"({', '.join(PICTURES)}){hint}"
            )
        files += found
        labels += [label] * len(found)
    if not source.has_paths:
        chosen = source.indices(len(files), part)
        files, labels = [files[i] for i in chosen], [labels[i] for i in chosen]
    read = partial(_read_image, files)
    return make_pictures(
        read, np.array(labels, np.int32), source, lambda i: str(files[i]), len(folders)
    )


def _read_image(files: Sequence[pathlib.Path], index: int) -> np.ndarray:
    image = cv2.imdecode(np.fromfile(files[index], np.uint8), cv2.IMREAD_COLOR_RGB)
    if image is None:
        raise BadRecordError(index, str(files[index]), "it cannot be decoded as an image")
    return image


def open_text(source: Source, part: Part) -> Dataset:
    """Windows of a text file.

    Raises:
      ValueError: if the text is not UTF-8 and `source.tokens` is "characters", or is too short.
    """
    if source.has_paths:
        texts = {p: source.path(p).read_bytes() for p in ("train", "test")}
    else:
        texts = {"all": source.path(part).read_bytes()}
    return make_text_dataset(texts, source, part)


def open_csv(source: Source, part: Part) -> Dataset:
    """Rows of a table with a header: x are all columns but those of `source.target`.

    `source.columns` chooses columns and their order; the last of them is the target where
    `source.target` names none. The columns of x are standardised with the mean and the standard
    deviation of the training rows. So are several targets; one target stays as it is. For a task
    that reads labels, the target may be text, and its distinct values in sorted order are the
    classes.

    Raises:
      ValueError: if a column is missing, or a cell is not a number.
    """
    header, rows, border = _read_tables(source)
    if border is None:
        places = source.indices(len(rows), "train"), source.indices(len(rows), "test")
    else:
        places = np.arange(border), np.arange(border, len(rows))
    chosen, targets = _chosen_and_targets(header, source)
    features = [name for name in chosen or header if name not in targets]
    if not features:
        raise ValueError(
            f"data.columns {source.columns!r} and data.target {source.target!r} leave no column of "
            f"{source.place} to predict from: {', '.join(header)}"
        )
    x = standardised(_numbers(rows, header, features, source), places[0])
    if any("label" in accepted for accepted in source.inputs):
        if len(targets) > 1:
            raise ValueError(
                f"data.target {source.target!r} names {len(targets)} columns; the task reads one, "
                "the column of classes"
            )
        target = [cells[header.index(targets[0])] for _, cells in rows]
        numbers = {cell: i for i, cell in enumerate(sorted(set(target), key=_as_number))}
        y = np.array([numbers[cell] for cell in target])
    else:
        y = _numbers(rows, header, targets, source)
        y = y if len(targets) == 1 else standardised(y, places[0])
    here = places[part == "test"]
    arrays = {"x": x[here], "y": y[here]}
    return make_dataset(arrays, replace(source, columns=None), part, whole=True)


def open_series(source: Source, part: Part) -> Dataset:
    """Windows of `source.context` rows of a table with a header, which is in the order of time.

    x is a window, and y has the columns of `source.target` in the row after it. The channels of x
    are `source.columns` in this order; by default the targets come first and then all others. As in
    `open_csv`, everything but a single target is standardised with the training rows. A test share
    is taken from the end; its first windows begin in the training rows.

    Raises:
      ValueError: as `open_csv`, or if the context is not set or not shorter than a split.
    """
    if source.context is None:
        raise ValueError("data.context is not set; set it to the number of rows that a model sees")
    header, rows, border = _read_tables(source)
    chosen, targets = _chosen_and_targets(header, source)
    features = chosen or [*targets, *(name for name in header if name not in targets)]
    x, y = (_numbers(rows, header, names, source) for names in (features, targets))
    is_one = border is None
    border = len(rows) - source.share(len(rows)) if border is None else border
    return divided(x, y, source.context, border, looks_back=is_one)[part]


def _read_tables(source: Source) -> tuple[list[str], list[Any], int | None]:
    """The header, the rows of both parts, and the number of training rows.

    It is None if one file holds both.
    """
    header, rows = _read_table(source.path("train"), source)
    if not source.has_paths:
        return header, rows, None
    other_header, tests = _read_table(source.path("test"), source)
    if other_header != header:
        raise ValueError(f"data.name {source.name!r}: the splits have different columns")
    return header, rows + tests, len(rows)


def _chosen_and_targets(header: list[str], source: Source) -> tuple[list[str], list[str]]:
    """The columns of `source.columns`, and those of y."""
    chosen = _names(source.columns)
    targets = _names(source.target) or chosen[-1:]
    for field, names in (("columns", chosen), ("target", targets or [""])):
        wrong = [name for name in names if name not in header or names.count(name) > 1]
        if wrong:
            raise ValueError(
                f"data.{field} {getattr(source, field)!r} must name columns of {source.place}, "
                f"each once, separated by commas: {', '.join(header)}"
            )
    return chosen, targets


def _names(text: str | None) -> list[str]:
    return [name.strip() for name in (text or "").split(",") if name.strip()]


def _read_table(path: pathlib.Path, source: Source) -> tuple[list[str], list[Any]]:
    """The header, and of each row its line and its cells."""
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file)
        header = [name.strip() for name in next(reader, [])]
        rows = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader if cells]
    for line, cells in rows:
        if len(cells) != len(header):
            raise ValueError(
                f"data.name {source.name!r}: line {line} of {path} has {len(cells)} cells and the "
                f"header has {len(header)}; they must be equally many"
            )
    if not rows:
        raise ValueError(f"data.name {source.name!r}: {path} has no rows after its header")
    return header, rows


def _numbers(rows: Any, header: list[str], names: list[str], source: Source) -> np.ndarray:
    """float64 `(rows, names)`."""
    table = np.empty((len(rows), len(names)))
    for column, name in enumerate(names):
        place = header.index(name)
        for row, (line, cells) in enumerate(rows):
            try:
                table[row, column] = float(cells[place])
            except ValueError as error:
                raise ValueError(
                    f"data.name {source.name!r}: {cells[place]!r} in column {name!r}, line {line}, "
                    "is not a number; replace it, or leave the column out with data.columns"
                ) from error
    with np.errstate(over="ignore"):  # It is reported here.
        finite = np.isfinite(table.astype(np.float32))
    if not finite.all():
        row, column = np.argwhere(~finite)[0]
        raise ValueError(
            f"data.name {source.name!r}: {table[row, column]} in column {names[column]!r}, line "
            f"{rows[row][0]}, is not a finite float32 number; replace it, or leave the column out "
            "with data.columns"
        )
    return table


def _as_number(cell: str) -> tuple[float, str]:
    """A key that sorts numbers by size. Texts and "nan" come after them, by alphabet."""
    try:
        number = float(cell)
    except ValueError:
        number = math.inf
    return (math.inf if math.isnan(number) else number), cell
