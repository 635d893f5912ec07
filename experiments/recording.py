"""Runs commands one after another, and keeps what each measured: a file each, and a page."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

RESULTS = pathlib.Path(__file__).parent / "results"


@dataclass(frozen=True)
class Measurement:
    """A command and the file that keeps its result.

    Attributes:
      name: of the file, without its extension.
      arguments: after `python -m experiments.`, the name of the command first.
      result: the file that the command writes; None if it prints JSON as the last line.
    """

    name: str
    arguments: tuple[str, ...]
    result: pathlib.Path | None = None


def folder_of_device() -> pathlib.Path:
    """Returns `experiments/results/DEVICE`, named for the first device of a process of its own."""
    program = "import jax; print(jax.devices()[0].device_kind)"
    command = [sys.executable, "-c", program]
    kind = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
    return RESULTS / re.sub(r"\W+", "_", kind)


def record(measurements: Sequence[Measurement], folder: pathlib.Path, minutes: float) -> int:
    """Makes the measurements whose files are missing, until the time is up; writes the page.

    A measurement that fails is printed, and the next one starts.

    Returns:
      How many files are still missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * minutes
    missing = 0
    for measurement in measurements:
        path = folder / f"{measurement.name}.json"
        if path.exists():
            continue
        result, reason = _measure(measurement, end - time.monotonic())
        if result is None:
            missing += 1
            print(f"{measurement.name}: {reason}", file=sys.stderr, flush=True)
            continue
        path.write_text(json.dumps(result) + "\n", encoding="utf-8")
        print(f"{measurement.name}: {path}", flush=True)
    (folder / "tables.md").write_text(page(folder), encoding="utf-8")
    return missing


def _measure(measurement: Measurement, seconds: float) -> tuple[Any, str]:
    """What the command measured, or None and why not. It may be interrupted and resumed later."""
    if seconds <= 0:
        return None, "no time left; start the same command again"
    name, *flags = measurement.arguments
    command = [sys.executable, "-m", f"experiments.{name}", *flags]
    with subprocess.Popen(
        command, cwd=RESULTS.parent.parent, stdout=subprocess.PIPE, text=True, env=os.environ
    ) as process:
        try:
            out, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)
            process.communicate()
            return None, "interrupted, because the time is up; start the same command again"
    if process.returncode:
        return None, f"exit status {process.returncode}"
    if measurement.result is not None:
        return json.loads(measurement.result.read_text(encoding="utf-8")), ""
    return json.loads(out[out.index("{") :]), ""


def page(folder: pathlib.Path) -> str:
    """Returns the results of a folder as Markdown: for each its table, command and versions."""
    parts = [f"# Measured on {folder.name}\n"]
    for path in sorted(folder.glob("*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        if "rows" not in result:
            parts.append(f"## {path.stem}\n\nSee [{path.name}]({path.name}).\n")
            continue
        devices, versions = result["devices"], result["versions"]
        about = f"{devices['count']} x {devices['kind']}, jax {versions['jax']}"
        notes = "\n".join(f"- {note}" for note in result.get("notes", []))
        parts.append(
            f"## {path.stem}\n\n`{result['command']}`\n\n{about}, commit {result['commit']}\n\n"
            f"{markdown_table(result['rows'])}\n\n{notes}"
        )
    return "\n".join(parts).rstrip() + "\n"


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns rows of equal columns as a table in Markdown."""
    lines = [list(rows[0]), ["---"] * len(rows[0])]
    lines += [[_cell(value) for value in row.values()] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
