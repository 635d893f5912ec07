"""Runs commands one after another, and keeps what each measured: a file each, and a page."""

import contextlib
import importlib.util
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any

from etils import epath

from batchgrow.run.files import write_whole

END_SECONDS = 120.0  # for a checkpoint
ROOT = pathlib.Path(__file__).parent.parent
RESULTS = ROOT / "experiments" / "results"


@dataclass(frozen=True)
class Measurement:
    """A command and the file that keeps its result.

    Attributes:
      name: of the file, without its extension.
      arguments: after `python -m experiments.`, the name of the command first.
      result: the report that a training writes; None if its output ends in one JSON object.
    """

    name: str
    arguments: tuple[str, ...]
    result: pathlib.Path | None = None


def folder_of_device() -> pathlib.Path:
    """Returns `experiments/results/DEVICE`, named for the first device of a process of its own."""
    kind = _printed("import jax; print(jax.devices()[0].device_kind)")
    return RESULTS / re.sub(r"\W+", "_", kind)


def torch_flags() -> list[str]:
    """Returns ["--torch"] if PyTorch is installed for the kind of device that JAX uses, else []."""
    if importlib.util.find_spec("torch") is None:
        return []
    program = (
        "import jax, torch; platform = jax.devices()[0].platform; "
        "print(platform == 'cpu' or platform == 'gpu' and torch.cuda.is_available())"
    )
    return ["--torch"] if _printed(program) == "True" else []


def _printed(program: str) -> str:
    """What a process of its own prints in its last line, so that this one takes no device."""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.strip().splitlines()[-1]


def record(measurements: Sequence[Measurement], folder: pathlib.Path, minutes: float) -> int:
    """Makes the measurements whose files are missing, until the time is up; writes the page.

    A measurement that fails is printed, and the next one starts. SIGTERM or Ctrl-C ends the one
    under way first.

    Returns:
      The exit status: 0 if no file is missing, 1 if a measurement failed, 75 if only time is
      missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * minutes
    failed = late = 0
    with _ending_by_exception():
        for measurement in measurements:
            path = folder / f"{measurement.name}.json"
            if path.exists():
                continue
            try:
                result = _measure(measurement, end - time.monotonic())
            except (ChildProcessError, TimeoutError) as error:
                is_late = isinstance(error, TimeoutError)
                failed, late = failed + (not is_late), late + is_late
                print(f"{measurement.name}: {error}", file=sys.stderr, flush=True)
                continue
            write_whole(epath.Path(path), f"{json.dumps(result)}\n".encode())
            print(f"{measurement.name}: {path}", flush=True)
    write_whole(epath.Path(folder / "tables.md"), page(folder).encode())
    print(f"{folder / 'tables.md'}: {failed + late} measurements are missing")
    return 1 if failed else os.EX_TEMPFAIL if late else 0


@contextlib.contextmanager
def _ending_by_exception() -> Iterator[None]:
    """While the context lasts, SIGTERM and SIGINT raise SystemExit."""

    def stop(number: int, _: FrameType | None) -> None:
        raise SystemExit(os.EX_TEMPFAIL)

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _measure(measurement: Measurement, seconds: float) -> Any:
    """What the command measured.

    Raises:
      TimeoutError: if there is no time for it. A training run continues when it is started again.
      ChildProcessError: if the command fails, or a run of a training did not finish.
    """
    if seconds <= 0:
        raise TimeoutError("no time left; start the same command again")
    name, *flags = measurement.arguments
    command = [sys.executable, "-m", f"experiments.{name}", *flags]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            out, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired as error:
            _end(process)
            raise TimeoutError(
                "interrupted, because the time is up; start the same command again"
            ) from error
        except BaseException:
            _end(process)
            raise
    if process.returncode:
        raise ChildProcessError(f"exit status {process.returncode}")
    if measurement.result is not None:
        return _checked(json.loads(measurement.result.read_text(encoding="utf-8")))
    return json.loads(out[out.index("{") :])


def _checked(report: Any) -> Any:
    """Returns the report of a training.

    Raises:
      ChildProcessError: if one of its runs did not finish, as one that diverged.
    """
    wrong = [f"{run['path']}: {run['status']}" for run in report["runs"] if not run["finished"]]
    if wrong:
        raise ChildProcessError("; ".join(wrong))
    return report


def _end(process: subprocess.Popen) -> None:
    """Lets a command save what it has, and ends it if that takes too long."""
    process.send_signal(signal.SIGTERM)
    try:
        process.communicate(timeout=END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()


def page(folder: pathlib.Path) -> str:
    """Returns the results of a folder as Markdown: for each its table, command and versions."""
    parts = ["# Benchmarks"]
    for path in sorted(folder.glob("*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        if "rows" not in result:
            parts.append(f"## {path.stem}\n\nSee [{path.name}]({path.name}).")
            continue
        devices, versions = result["devices"], result["versions"]
        about = f"{devices['count']} x {devices['kind']}, jax {versions['jax']}"
        notes = "\n".join(f"- {note}" for note in result.get("notes", []))
        parts.append(
            f"## {path.stem}\n\n`{result['command']}`\n\n{about}, commit {result['commit']}\n\n"
            f"{markdown_table(result['rows'])}\n\n{notes}".rstrip()
        )
    return "\n\n".join(parts) + "\n"


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns rows of equal columns as a table in Markdown."""
    lines = [list(rows[0]), ["---"] * len(rows[0])]
    lines += [[_cell(value) for value in row.values()] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
