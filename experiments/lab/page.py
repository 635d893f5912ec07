"""docs/laboratory.md from the recorded results. No JAX."""

import json
import pathlib
import textwrap
from collections.abc import Mapping
from typing import Any

from batchgrow.report import wording
from batchgrow.text_table import WIDTH
from experiments.lab import EXPERIMENTS

OPENING = """# The laboratory

Claims about batch size, learning rate and generalization, from papers and lectures. One command
measures each of them, and this page shows the claim, the finding, and the source's numbers beside
ours. `python -m experiments.lab` lists the experiments;
`python -m experiments.lab NAME --workdir=runs/lab` runs one. It can be stopped and started again.

Figures show bands if there are at least three seeds. Bands and intervals are 95 % t-intervals over
seeds unless a sentence says otherwise. Some numbers of sources are taken from notes and reviews
that quote them, among them those of Smith et al. 2018 and Hoffer et al. 2017. The word "unverified"
stands beside a number that neither the source nor such a text confirmed. Where a note says that the
network or the data is smaller than the source's, our number is no reproduction of theirs. Times are
those of all runs one after another, on a machine that did other work too.
`python -m experiments.lab --page` makes this page from `experiments/results/lab/`.
"""


def page(folder: pathlib.Path, seeds: Mapping[str, int]) -> str:
    """Returns the page for the results in a folder, in the order of `EXPERIMENTS`.

    Args:
      folder: of the results.
      seeds: how many each experiment has by default, by name.
    """
    parts = [OPENING]
    for name in EXPERIMENTS:
        result = _recorded(folder, name)
        if result is not None:
            parts.append(_section(result, seeds[name]))
    return "\n".join(parts)


def listing(claims: Mapping[str, str], folder: pathlib.Path) -> str:
    """Returns each claim by the name of its experiment, with what was found in a folder of results.

    Of a finding, its first sentence; "not recorded" without a result.
    """
    lines = []
    for name, claim in claims.items():
        result = _recorded(folder, name)
        finding, end, _ = result["finding"].partition(". ") if result else ("not recorded", "", "")
        lines.append(name)
        for said in (f"  claim: {claim}", f"  found: {finding}{end.strip()}"):
            lines.append(textwrap.fill(said, WIDTH, subsequent_indent=" " * 9))
    return "\n".join(lines)


def _recorded(folder: pathlib.Path, name: str) -> dict[str, Any] | None:
    path = folder / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _section(result: dict[str, Any], seeds: int) -> str:
    rows = [
        "| | source | ours | 95 % interval | n |",
        "|---|---|---|---|---|",
        *(_row(number) for number in result["numbers"]),
    ]
    name = result["name"]
    title = name.replace("_", " ").capitalize()
    note = f"{result['note']} " if result["note"] else ""
    return f"""## {title}

**Claim** ({result["source"]}). {result["claim"]}

**Finding.** {result["finding"]}

![{title}](laboratory/{name}.png)

{chr(10).join(rows)}

{note}{_how(result, seeds)}
"""


def _row(number: dict[str, Any]) -> str:
    interval = wording.EMPTY
    if number["low"] is not None:
        interval = f"{wording.plain(number['low'])} to {wording.plain(number['high'])}"
    sure = f" ({number['sure']})" if number["sure"] == "unverified" else ""
    ours = wording.EMPTY if number["ours"] is None else wording.plain(number["ours"])
    source = (number["source"] or wording.EMPTY) + sure
    return f"| {number['what']} | {source} | {ours} | {interval} | {number['n']} |"


def _how(result: dict[str, Any], seeds: int) -> str:
    """The command that makes as many seeds again, and what is recorded of its runs."""
    made = len(result["seeds"])
    flag = "" if made == seeds else f" --seeds={made}"
    diverged = f", {result['num_diverged']} of which diverged" if result["num_diverged"] else ""
    runs = result["num_runs"] + result["num_diverged"]
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    devices, duration = result["devices"], wording.duration(result["wall_seconds"])
    commits = ", ".join(commit[:7] for commit in result["commits"])
    return (
        f"`python -m experiments.lab {result['name']}{flag}`: {runs} runs{diverged}, "
        f"{made} seed{'' if made == 1 else 's'}, {duration}, "
        f"on {devices.get('count')} × {devices.get('platform')}; {versions}; commit {commits}."
    )
