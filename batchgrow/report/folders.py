"""Run folders of format 2, read and checked. No jax."""

import dataclasses
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

from etils import epath

from batchgrow.report import schema
from batchgrow.run.folder import FORMAT


@dataclasses.dataclass(frozen=True)
class Metric:
    """A metric of the task, as task.json describes it.

    Attributes:
      name: as in the rows, without the prefix `train_` or `test_`.
      better: "lower" or "higher".
      percent: whether its values are fractions that people read as percentages.
    """

    name: str
    better: str
    percent: bool = False


@dataclasses.dataclass(frozen=True)
class Run:
    """One run folder: config, plan, task, the rows and, once the run has finished, the summary."""

    path: str
    config: dict[str, Any]
    plan: dict[str, Any]
    task: dict[str, Any]
    rows: tuple[dict[str, Any], ...]
    summary: dict[str, Any] | None

    @property
    def metric(self) -> Metric:
        """The task's first metric, by which runs are compared."""
        first = self.task["metrics"][0]
        return Metric(first["name"], first["better"], first["percent"])

    @property
    def experiment(self) -> str:
        return self.config["name"]

    @property
    def variant(self) -> str:
        return self.config["variant"]

    @property
    def optimizer(self) -> str:
        return self.config["optimizer"]["name"]

    @property
    def seed(self) -> int:
        return self.config["seed"]

    @property
    def finished(self) -> bool:
        return self.summary is not None

    @property
    def epoch(self) -> float:
        """Epochs trained so far, as logged."""
        return self.rows[-1]["epoch"] if self.rows else 0.0

    @property
    def num_updates(self) -> int:
        """Updates made so far."""
        if self.summary is not None:
            return self.summary["num_updates"]
        return self.rows[-1]["updates"] if self.rows else 0

    @property
    def test(self) -> float | None:
        """The test metric at the end, or at the last evaluation of an unfinished run."""
        return self.final(f"test_{self.metric.name}")

    def final(self, column: str) -> float | None:
        """The last value of a column of the rows; None if there is none or it is not finite."""
        if self.summary is not None:
            return self.summary["final"].get(column)
        values = [row[column] for row in self.rows if column in row]
        return values[-1] if values else None


def find_runs(paths: Iterable[str]) -> list[str]:
    """Run folders among and below `paths`, in order, each once.

    Raises:
      ValueError: if a path does not exist or holds no run folder.
    """
    found: dict[str, None] = {}
    for given in paths:
        path = epath.Path(given)
        if not path.is_dir():
            raise ValueError(f"{given}: no such folder; give run folders or a folder of them")
        below = _run_folders(path)
        if not below:
            raise ValueError(
                f"{given}: no run folder here (no config.json); give the workdir of a training run"
            )
        found |= dict.fromkeys(str(folder) for folder in below)
    return list(found)


def _run_folders(path: epath.Path) -> list[epath.Path]:
    """`path` itself if it is a run folder, otherwise the run folders below it."""
    if (path / "config.json").exists():
        return [path]
    folders = sorted(child for child in path.iterdir() if child.is_dir())
    return [found for folder in folders for found in _run_folders(folder)]


def read_run(path: str) -> Run:
    """The run in folder `path`.

    Raises:
      ValueError: if a file is missing or damaged, or the folder has another format. The message
        names the file.
    """
    folder = epath.Path(path)
    # Not None, which is another value of a field: a limit of inf is none, None the default.
    config = _read_json(folder / "config.json", schema.CONFIG, {"Infinity": "inf"})
    if not (folder / "task.json").exists():
        raise ValueError(
            f"{folder}: the folder has no task.json, so batchgrow 0.1 wrote it; train again, or "
            "use the report of batchgrow 0.1"
        )
    task = _read_json(folder / "task.json", {})
    if task.get("format") != FORMAT:
        raise ValueError(
            f"{folder / 'task.json'}: format is {task.get('format')}, but this version of "
            f"batchgrow reads format {FORMAT}; use the version that wrote the folder"
        )
    schema.check(folder / "task.json", task, schema.TASK)
    schema.check_items(f"{folder / 'task.json'}, metrics", task["metrics"], schema.METRIC)
    plan = _read_json(folder / "plan.json", schema.PLAN)
    schema.check_items(f"{folder / 'plan.json'}, segments", plan["segments"], schema.SEGMENT)
    summary, last = None, folder / "summary.json"
    if last.exists():
        summary = _read_json(last, schema.SUMMARY)
        schema.check_items(f"{last}, segments", summary["segments"], schema.MEASURED)
    return Run(
        path=str(path),
        config=config,
        plan=plan,
        task=task,
        rows=_read_rows(folder / "metrics.jsonl"),
        summary=summary,
    )


def _read_json(
    path: epath.Path, fields: schema.Fields, constants: Mapping[str, Any] = MappingProxyType({})
) -> dict[str, Any]:
    try:
        value = schema.parse(path.read_text(), constants)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read as JSON ({error})") from error
    schema.check(path, value, fields)
    return value


def _read_rows(path: epath.Path) -> tuple[dict[str, Any], ...]:
    """The rows so far; none if the file does not exist yet.

    The last line is dropped if a killed run has left it incomplete.
    """
    if not path.exists():
        return ()
    rows: list[dict[str, Any]] = []
    lines = path.read_text().splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            row = schema.parse(line)
        except ValueError as error:
            if number == len(lines):
                break
            raise ValueError(f"{path}, line {number}: not JSON ({error})") from error
        schema.check_row(f"{path}, line {number}", row)
        rows.append(row)
    return tuple(rows)
