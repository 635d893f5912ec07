"""Sends the rows of a run to Weights & Biases or another tracker, by examples seen.

It reads the run folder, so that a run neither waits for a tracker nor fails with it:

    python -m batchgrow track RUN --wandb PROJECT --follow

Needs the standard library only; W&B is imported when it is asked for.
"""

import json
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

Row = dict[str, Any]


def read_rows(folder: pathlib.Path, after: int = -1) -> Iterator[Row]:
    """Yields the rows of `metrics.jsonl` whose `examples_seen` is above `after`, in order.

    A line that is not yet complete is left for the next call. After a resume, rows that
    are written again are equal to those before, and are not yielded again.

    Args:
      folder: the run folder.
      after: `examples_seen` of the last row that was sent.
    """
    path = folder / "metrics.jsonl"
    if not path.exists():
        return
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                row = json.loads(line)
                if row["examples_seen"] > after:
                    after = row["examples_seen"]
                    yield row


def send_rows(
    folder: pathlib.Path,
    send: Callable[[Row], None],
    *,
    after: int = -1,
    poll_seconds: float | None = None,
) -> int:
    """Calls `send` once with each row, and returns `examples_seen` of the last one.

    Args:
      folder: the run folder.
      send: takes a row, a flat dictionary. `examples_seen` is meant as its x axis.
      after: `examples_seen` of the last row that was sent earlier.
      poll_seconds: how long to wait before looking for new rows, until the run has finished and
        `summary.json` exists. None: do not wait.
    """
    while True:
        # Checked before reading, because no row comes later.
        finished = (folder / "summary.json").exists()
        for row in read_rows(folder, after):
            send(row)
            after = row["examples_seen"]
        if finished or poll_seconds is None:
            return after
        time.sleep(poll_seconds)


def wandb_sender(run: Any) -> Callable[[Row], None]:
    """Returns a function that sends rows to a W&B run, with `examples_seen` as the x axis.

    Args:
      run: what `wandb.init` returns.
    """
    run.define_metric("examples_seen")
    run.define_metric("*", step_metric="examples_seen")
    return run.log


def track_with_wandb(folder: pathlib.Path, project: str, *, poll_seconds: float | None) -> None:
    """Sends a run folder to W&B: its config, and its rows from where an earlier call ended.

    The W&B run has the name of the folder, and the file `wandb.json` in the folder keeps its id and
    the last row.

    Raises:
      ModuleNotFoundError: if wandb is not installed.
    """
    import wandb  # pyright: ignore[reportMissingImports]

    state_path, config_path = folder / "wandb.json", folder / "config.json"
    state = json.loads(state_path.read_text()) if state_path.exists() else {"after": -1}
    config = json.loads(config_path.read_text()) if config_path.exists() else {}
    run = wandb.init(
        project=project, name=folder.name, config=config, id=state.get("id"), resume="allow"
    )
    log = wandb_sender(run)

    def send(row: Row) -> None:
        log(row)
        state_path.write_text(json.dumps({"id": run.id, "after": row["examples_seen"]}))

    send_rows(folder, send, after=state["after"], poll_seconds=poll_seconds)
    run.finish()
