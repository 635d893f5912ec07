"""The report as one HTML page that needs nothing but itself: styles and figures are inside it."""

import dataclasses
import html
import json
import shlex
import string
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from batchgrow.report import wording
from batchgrow.report.runs import TIMERS

Facts = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Drawing:
    """A figure for the page: its caption, its inline SVG and what it says in words."""

    title: str
    svg: str
    alternative: str


def as_json(facts: Facts) -> str:
    return json.dumps(facts, indent=1, allow_nan=False) + "\n"


def html_page(facts: Facts, drawings: Sequence[Mapping[str, Drawing]], out_dir: str) -> str:
    """drawings: for each comparison, name -> Drawing in the order of the page."""
    comparisons = facts["comparisons"]
    names = dict.fromkeys(comparison["setting"].split(",")[0] for comparison in comparisons)
    body = [_opening(facts)]
    for number, (comparison, drawn) in enumerate(zip(comparisons, drawings, strict=True)):
        if len(comparisons) > 1:
            body.append(f'<h2 id="comparison{number}">{_escape(comparison["setting"])}</h2>')
        body.append(_comparison(comparison, drawn, "h3" if len(comparisons) > 1 else "h2"))
    body += [_what_ran(facts["runs"]), _run_again(facts["runs"], out_dir)]
    template = string.Template(
        resources.files("batchgrow.report").joinpath("page.html").read_text()
    )
    title = f"{', '.join(names)}: how the plans compare"
    return template.substitute(title=_escape(title), body="\n".join(body))


def _opening(facts: Facts) -> str:
    runs = facts["runs"]
    finished = sum(run["finished"] for run in runs)
    many = f"{len(runs)} run{'s' if len(runs) > 1 else ''}"
    state = "all finished" if finished == len(runs) else f"{finished} finished"
    comparisons = facts["comparisons"]
    if len(comparisons) == 1:
        state = f"{comparisons[0]['setting']}. {many}, {state}."
        headlines = [_escape(comparisons[0]["headline"])]
    else:
        state = f"{many}, {state}."
        headlines = [
            f'<a href="#comparison{number}">{_escape(comparison["setting"])}</a><br>'
            + _escape(comparison["headline"])
            for number, comparison in enumerate(comparisons)
        ]
    lines = [f'<p class="headline">{headline}</p>' for headline in headlines]
    return "\n".join([*lines, f'<p class="soft">{_escape(state)}</p>'])


def _comparison(comparison: Facts, drawn: Mapping[str, Drawing], level: str) -> str:
    """level: the HTML heading of its parts."""
    curves = [drawing for name, drawing in drawn.items() if name != "time"]
    parts = [
        f"<{level}>How the plans compare</{level}>",
        _plans_table(comparison["plans"]),
        _paired_table(comparison["paired"]),
        _paper_table(comparison["paper"]),
        f"<{level}>Schedules and curves</{level}>",
        f'<div class="figures">{"".join(map(_figure, curves))}</div>',
        '<p class="soft">Lines are medians over seeds, bands reach from the least to the most of '
        "them; dotted lines mark where a phase begins.</p>",
        f"<{level}>The plans, phase by phase</{level}>",
        _phases_table(comparison["plans"]),
        '<p class="soft">Noise scale = learning rate × training examples / (batch size × '
        "(1 − momentum)). Plans with the same noise scale over the epochs are expected to train "
        "alike.</p>",
    ]
    if "time" in drawn:
        parts += [f"<{level}>Where the time went</{level}>", _time_table(comparison["plans"])]
        parts += [f'<div class="figures">{_figure(drawn["time"])}</div>']
    return "\n".join(parts)


def _plans_table(plans: Sequence[Facts]) -> str:
    header = ("Plan", "Updates", "Fewer", "Test accuracy", "Mean ± sd", "n", "Training time")
    note = (
        '<p class="soft">Test accuracy: median over n seeds, then mean and sample standard '
        f"deviation. Fewer: times fewer updates than {_escape(plans[0]['plan'])}. Training time: "
        "median of the whole run, compilation and evaluation included.</p>"
    )
    return _table(header, [wording.plan_cells(plan) for plan in plans]) + note


def _paired_table(paired: Sequence[Facts]) -> str:
    if not paired:
        return ""
    rows = [(f"{row['second']} − {row['first']}", row["verdict"]) for row in paired]
    heading = "<h3>Differences in test accuracy, seed by seed</h3>"
    note = (
        '<p class="soft">Mean over the common seeds with its 95% t-interval, each pair by itself.'
        "</p>"
    )
    return heading + _table(("Pair", "Mean difference"), rows, wide=(1,)) + note


def _paper_table(rows: Sequence[Facts]) -> str:
    if not rows:
        return ""
    header = ["Plan", "Paper", "Ours (median)", "n", "Paper's updates", "Our updates"]
    header += ["Ran on", "Source"]
    cells = []
    for row in rows:
        ours, updates = row["test_accuracy"], row["paper_updates"]
        not_run = f"not run: {row['command']}" if row["command"] else "not run"
        cells.append(
            (
                row["plan"],
                wording.percent(row["paper_test_accuracy"], 1),
                wording.percent(ours and ours["median"]),
                str(ours["n"]) if ours else wording.EMPTY,
                updates if isinstance(updates, str) else wording.count(updates),
                wording.count(row["num_updates"]),
                "; ".join(row["ran_on"]) or not_run,
                row["source"],
            )
        )
    return "<h3>Beside the paper</h3>" + _table(header, cells, wide=(6, 7))


def _phases_table(plans: Sequence[Facts]) -> str:
    header = ["Plan", "Epochs", "Updates", "Batch size", "Learning rate", "Momentum"]
    header += ["Noise scale", "Images/s"]
    known = any(phase["share_of_peak"] for plan in plans for phase in plan["phases"])
    if known:
        header += ["Share of peak"]
    rows = [
        (
            plan["plan"],
            f"{phase['start_epoch']:.4g} to {phase['end_epoch']:.4g}",
            wording.count(phase["num_updates"]),
            wording.count(phase["global_batch_size"]),
            wording.start_and_end(phase, "learning_rate"),
            f"{phase['momentum']:g}",
            wording.start_and_end(phase, "noise_scale"),
            wording.count(phase["images_per_second"]),
            *([wording.percent(phase["share_of_peak"], 1)] if known else []),
        )
        for plan in plans
        for phase in plan["phases"]
    ]
    return _table(header, rows)


def _time_table(plans: Sequence[Facts]) -> str:
    header = ("Plan", "Whole run", *(timer.capitalize() for timer in TIMERS))
    rows = []
    for plan in plans:
        if plan["seconds"]:
            whole = sum(plan["seconds"].values()) or 1.0
            cells = [
                f"{wording.duration(value)} ({100 * value / whole:.0f}%)"
                for value in plan["seconds"].values()
            ]
            rows.append((plan["plan"], wording.duration(whole), *cells))
    note = "Mean over seeds. Compile, input: what training waited for; step: the rest of training."
    return _table(header, rows) + f'<p class="soft">{note}</p>'


def _what_ran(runs: Sequence[Facts]) -> str:
    header = ("Plan", "Seed", "Status", "Updates", "Epochs", "Test accuracy", "Time", "Folder")
    rows = [
        (
            run["plan"],
            str(run["seed"]),
            run["status"],
            wording.count(run["num_updates"]),
            f"{run['epoch']:.4g} of {run['num_epochs']:g}",
            wording.percent(run["test_accuracy"]),
            wording.duration(run["wall_seconds"]),
            run["path"],
        )
        for run in runs
    ]
    environments: dict[str, list[str]] = {}
    for run in runs:
        if run["devices"]:
            where = wording.environment(run)
            environments.setdefault(where, []).append(f"{run['plan']} seed {run['seed']}")
    lines = []
    for where, which in environments.items():
        lines.append(f"<p>{_escape(where)}</p>")
        if len(environments) > 1:
            lines.append(f'<p class="soft">{_escape(", ".join(which))}</p>')
    return "\n".join(["<h2>What ran, on what</h2>", *lines, _table(header, rows, text=(2, 7))])


def _run_again(runs: Sequence[Facts], out_dir: str) -> str:
    commands = dict.fromkeys(run["command"] for run in runs if run["command"])
    folders = shlex.join(run["path"] for run in runs)
    report = f"python -m experiments.report {folders} --out={shlex.quote(out_dir)}"
    lines = "\n".join(_escape(command) for command in [*commands, report])
    return f'<h2>How to run it again</h2>\n<pre tabindex="0">{lines}</pre>'


def _figure(drawing: Drawing) -> str:
    return (
        f"<figure><figcaption>{_escape(drawing.title)}</figcaption>"
        f'<div role="img" aria-label="{_escape(drawing.alternative)}">{drawing.svg}</div></figure>'
    )


def _table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    text: Sequence[int] = (),
    wide: Sequence[int] = (),
) -> str:
    """Columns in `text` and the first are flush left; those in `wide` also wrap."""
    styles = ["text" if column == 0 or column in text else "" for column in range(len(header))]
    for column in wide:
        styles[column] = "text wide"
    styles = [f' class="{style}"' if style else "" for style in styles]
    head = "".join(
        f"<th{style}>{_escape(name)}</th>" for style, name in zip(styles, header, strict=True)
    )
    body = ""
    for row in rows:
        first = f'<th scope="row"{styles[0]}>{_escape(row[0])}</th>'
        rest = zip(styles[1:], row[1:], strict=True)
        body += f"<tr>{first}{''.join(f'<td{s}>{_escape(cell)}</td>' for s, cell in rest)}</tr>\n"
    return (
        '<div class="scroll" tabindex="0"><table>'
        f"<thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>"
    )


def _escape(words: str) -> str:
    return html.escape(words, quote=True)
