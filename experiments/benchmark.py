"""How a benchmark runs, and how it prints what it measured: a table, or JSON with --json."""

import json
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
from absl import flags, logging

from batchgrow.run import environment
from batchgrow.text_table import text_table
from experiments import cli

_JSON = flags.DEFINE_bool("json", False, "Print one line of JSON instead of the table.")


def run(main: Callable[[], str]) -> None:
    """Parses flags and prints what `main` returns. No executable comes from a cache."""

    def printed(_: list[str]) -> int:
        logging.set_verbosity(logging.WARNING)
        jax.config.update("jax_enable_compilation_cache", False)
        print(main())
        return 0

    cli.run(printed)


def report(
    title: str, rows: Sequence[dict[str, Any]], notes: Sequence[str] = (), **about: Any
) -> str:
    """The rows and what they were measured on: a table, or with --json one line of JSON.

    Args:
      title: the name of the benchmark.
      rows: of equal columns.
      notes: lines below the table.
      about: what else is recorded beside the rows, such as `dtype`; `devices` and `versions`
        replace those of this process.

    Raises:
      ValueError: if there are no rows.
    """
    if not rows:
        raise ValueError("nothing to measure: a list among the flags is empty")
    about = environment.recorded() | about
    about["environment"] = {
        name: value
        for name, value in sorted(os.environ.items())
        if name.startswith(("JAX_", "XLA_", "MALLOC_", "GLIBC_", "OMP_"))
    }
    if _JSON.value:
        return json.dumps({"benchmark": title, "rows": rows, "notes": notes, **about})
    devices, versions = about["devices"], about["versions"]
    facts = [about["dtype"]] if "dtype" in about else []
    facts += [f"{devices['count']} x {devices['kind']}"]
    facts += [f"{name} {versions[name]}" for name in ("python", "jax", "flax")]
    facts += [f"commit {about['commit']}"]
    variables = [f"{name}={value}" for name, value in about["environment"].items()]
    table = text_table([list(rows[0]), *([_cell(value) for value in row.values()] for row in rows)])
    lines = [table, "", *notes, ", ".join(facts), " ".join([*variables, about["command"]])]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
