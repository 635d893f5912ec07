"""What a command leaves: OUT.json and OUT.png, or the report on its runs. No flags."""

import json
import os
from collections.abc import Iterable
from typing import Any

from etils import epath

from batchgrow.report import Paper, Run, find_runs, read_run, text, write_report
from batchgrow.run.files import write_whole


def check_writable(out: epath.Path) -> None:
    """Checks that OUT.json and OUT.png can be written and would replace nothing.

    Call it before what takes long. It makes the folder of `out`, writes an empty file there and
    removes it.

    Raises:
      ValueError: if there is a result already, or nothing can be written there.
    """
    for path in (out.with_name(f"{out.name}.{ending}") for ending in ("json", "png")):
        if path.exists():
            raise ValueError(f"{path} exists and is not replaced; move it, or take another --out")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        empty = out.with_name(f"{out.name}.{os.getpid()}")
        empty.write_text("")
        empty.unlink(missing_ok=True)
    except OSError as error:
        reason = error.strerror or error
        raise ValueError(f"cannot write to {out} ({reason}); take another --out") from error


def write_result(out: epath.Path, found: dict[str, Any], figure: bytes | None) -> None:
    """Writes OUT.json and OUT.png, each as a whole.

    Args:
      out: the path without its extension.
      found: the result.
      figure: the PNG; None if there is nothing to draw.

    Raises:
      OSError: if they cannot be written.
    """
    write_whole(out.with_name(f"{out.name}.json"), f"{json.dumps(found, indent=1)}\n".encode())
    if figure is not None:
        write_whole(out.with_name(f"{out.name}.png"), figure)


def report_on(
    folders: Iterable[str],
    workdir: str,
    paper: Paper | None = None,
    *,
    x: str | None = None,
    y: str | None = None,
) -> None:
    """Writes the report on the runs of a command to WORKDIR/report and prints its facts.

    Process 0 does so; the others return.

    Args:
      folders: the run folders, or folders that contain them.
      workdir: the folder of the command.
      paper, x, y: as `write_report` takes them.

    Raises:
      ValueError: if a folder cannot be read, or as `write_report` raises it.
    """
    import jax  # The report of finished runs does without it.

    if jax.process_index() != 0:
        return
    out = os.path.join(workdir, "report")
    runs = [read_run(folder) for folder in find_runs(folders)]
    if some_logged(runs):
        print(text(write_report(runs, out, paper, x=x, y=y)))
        print(f"\nreport: {os.path.join(out, 'index.html')}")


def some_logged(runs: Iterable[Run]) -> bool:
    """Whether a report on trained runs has something to show; if not, prints why."""
    if any(run.rows for run in runs):
        return True
    print("no report: every run diverged before its first row")
    return False
