"""The report as one HTML page, which contains its styles and figures."""

import dataclasses
import html
import json
import shlex
import string
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from batchgrow.report import wording

Facts = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Drawing:
    """A figure for the page: its caption, its inline SVG and its text alternative."""

    title: str
    svg: str
    alternative: str


def as_json(facts: Facts) -> str:
    return json.dumps(facts, indent=1, allow_nan=False) + "\n"


def html_page(
    facts: Facts, drawings: Sequence[Mapping[str, Drawing]], sweep: Drawing | None, out_dir: str
) -> str:
    """drawings: for each comparison, name -> Drawing in the order of the page."""
    comparisons = facts["comparisons"]
    names = dict.fromkeys(comparison["setting"].split(",")[0] for comparison in comparisons)
    body = [_opening(facts)]
    if sweep is not None:
        body += ["<h2>The sweep</h2>", f'<div class="figures">{_figure(sweep)}</div>', SWEEP]
    for number, (comparison, drawn) in enumerate(zip(comparisons, drawings, strict=True)):
        if len(comparisons) > 1:
            body.append(f'<h2 id="comparison{number}">{_escape(comparison["setting"])}</h2>')
        body.append(_comparison(comparison, drawn, "h3" if len(comparisons) > 1 else "h2"))
    body += [
        _decisions(facts["runs"]),
        _what_ran(facts["runs"]),
        _run_again(facts["runs"], out_dir),
    ]
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
        _plans_table(comparison["plans"], comparison["metric"]),
        _paired_table(comparison["paired"], comparison["metric"]),
        _paper_table(comparison["paper"], comparison["metric"]),
        f"<{level}>Plans and curves</{level}>",
        f'<div class="figures">{"".join(map(_figure, curves))}</div>',
        CURVES if curves else MANY,
        f"<{level}>The segments of each plan</{level}>",
        _segments_table(comparison["plans"]),
        f'<p class="soft">{NOISE.get(_noise(comparison["plans"]) or "", "")}</p>',
    ]
    if "time" in drawn:
        parts += [f"<{level}>Where the time went</{level}>", _time_table(comparison["plans"])]
        parts += [f'<div class="figures">{_figure(drawn["time"])}</div>']
    return "\n".join(parts)


CURVES = (
    '<p class="soft">Each line is the median over seeds, and its band reaches from the lowest '
    "to the highest seed. Dotted lines mark the starts of segments.</p>"
)
MANY = '<p class="soft">There are too many plans for one figure; report fewer run folders.</p>'
SWEEP = (
    '<p class="soft">Each point is the mean over seeds; a band is the 95 % t-interval of the mean. '
    "A line joins runs that differ in nothing else but the seed. Runs that diverged are left "
    "out.</p>"
)
NOISE = {
    "noise_scale": "Noise scale = learning rate × training examples / (batch size × "
    "(1 − momentum)). Plans with the same noise scale over the epochs are expected to train "
    "alike. A plan has the noise scale of its recipe if its exponent is 1.",
    "diffusion": "Diffusion = learning rate × √(training examples / batch size): how far noise "
    "moves a parameter in an epoch if each step is normalised, as Adam's. Plans with the same "
    "diffusion over the epochs are expected to train alike. A plan has the diffusion of its recipe "
    "if its exponent is 1/2.",
}


def _plans_table(plans: Sequence[Facts], metric: Facts) -> str:
    test = wording.test(metric).capitalize()
    header = ("Plan", "Updates", "Fewer", test, "Mean ± sd", "n", "Training time")
    note = (
        f'<p class="soft">{_escape(test)}: the median over n seeds, then the mean and the sample '
        f"standard deviation; {metric['better']} is better. Fewer: how many times fewer updates "
        f"than {_escape(plans[0]['plan'])}. Training time: the median over seeds of the whole run, "
        "with compilation and evaluation.</p>"
    )
    return _table(header, [wording.plan_cells(plan, metric) for plan in plans], cards=True) + note


def _paired_table(paired: Sequence[Facts], metric: Facts) -> str:
    if not paired:
        return ""
    rows = [(f"{row['second']} − {row['first']}", row["verdict"]) for row in paired]
    heading = f"<h3>Differences in {_escape(wording.test(metric))} between runs of one seed</h3>"
    note = (
        '<p class="soft">The mean over the common seeds with its 95 % t-interval. The intervals '
        "are not corrected for the number of pairs. Of many plans, each is compared with the best "
        "one.</p>"
    )
    return heading + _table(("Pair", "Mean difference"), rows, wide=(1,), cards=True) + note


def _paper_table(rows: Sequence[Facts], metric: Facts) -> str:
    if not rows:
        return ""
    test = wording.test(metric)
    header = ["Plan", f"Paper's {test}", f"Our {test} (median)", "n"]
    header += ["Paper's updates", "Our updates", "Ran on", "Source"]
    cells = []
    for row in rows:
        ours, updates = row["test"], row["paper_updates"]
        not_run = f"not run: {row['command']}" if row["command"] else "not run"
        cells.append(
            (
                row["plan"],
                wording.value(row["paper_test"], metric, 1),
                wording.value(ours and ours["median"], metric),
                str(ours["n"]) if ours else wording.EMPTY,
                updates if isinstance(updates, str) else wording.count(updates),
                wording.count(row["num_updates"]),
                "; ".join(row["ran_on"]) or not_run,
                row["source"],
            )
        )
    return "<h3>Beside the paper</h3>" + _table(header, cells, wide=(6, 7), cards=True)


def _noise(plans: Sequence[Facts]) -> str | None:
    """What all segments call the noise; None if not all call it the same."""
    names = {wording.noise_name(s) for plan in plans for s in plan["segments"]}
    return names.pop() if len(names) == 1 else None


def _segments_table(plans: Sequence[Facts]) -> str:
    counts_tokens = any(segment["tokens"] for plan in plans for segment in plan["segments"])
    header = ["Plan", "Epochs", *(["Tokens"] if counts_tokens else [])]
    header += ["Updates", "Batch size", "Learning rate", "Momentum"]
    noise = _noise(plans)
    header += [*([noise.replace("_", " ").capitalize()] if noise else []), "Examples/s"]
    known = any(segment["share_of_peak"] for plan in plans for segment in plan["segments"])
    if known:
        header += ["Share of peak"]
    rows = [
        (
            plan["plan"],
            f"{segment['start_epoch']:.4g} to {segment['end_epoch']:.4g}",
            *([wording.count(segment["tokens"])] if counts_tokens else []),
            wording.count(segment["num_updates"]),
            wording.count(segment["batch_size"]),
            wording.start_and_end(segment, "learning_rate"),
            wording.momentum(segment),
            *([wording.start_and_end(segment, noise)] if noise else []),
            wording.count(segment["examples_per_second"]),
            *([wording.percent(segment["share_of_peak"], 1)] if known else []),
        )
        for plan in plans
        for segment in plan["segments"]
    ]
    return _table(header, rows)


def _decisions(runs: Sequence[Facts]) -> str:
    """Every decision of the plans that follow the noise, and the numbers behind it."""
    rows = [
        (
            f"{run['plan']} seed {run['seed']}",
            f"{decision['epoch']:.4g}",
            wording.count(decision["noise_scale"]),
            wording.count(decision["batch_size"]),
            _decision(decision),
        )
        for run in runs
        for decision in run["decisions"]
    ]
    if not rows:
        return ""
    header = ("Plan", "Epoch", "Noise scale", "Batch size", "Decision")
    note = (
        '<p class="soft">The batch grows to the next rung if the noise scale times plan.factor is '
        "at least that rung.</p>"
    )
    return "<h2>Decisions by the measured noise</h2>" + _table(header, rows, wide=(4,)) + note


def _decision(decision: Facts) -> str:
    if decision["noise_scale"] is None:
        return "stays: the noise is unknown"
    size, following = decision["batch_size"], decision["next_batch_size"]
    allowed = f"the noise allows {decision['factor'] * decision['noise_scale']:,.0f}"
    return f"grows to {following:,}: {allowed}" if following > size else f"stays: {allowed}"


def _time_table(plans: Sequence[Facts]) -> str:
    timers = dict.fromkeys(timer for plan in plans for timer in plan["seconds"] or {})
    header = ("Plan", "Whole run", *(timer.capitalize() for timer in timers))
    rows = []
    for plan in plans:
        if plan["seconds"]:
            whole = sum(plan["seconds"].values()) or 1.0
            parts = [plan["seconds"].get(timer, 0.0) for timer in timers]
            cells = [f"{wording.duration(part)} ({100 * part / whole:.0f}%)" for part in parts]
            rows.append((plan["plan"], wording.duration(whole), *cells))
    note = (
        "The mean over seeds. Compile and input: how long training waited for them. Step: all the "
        "rest of training."
    )
    return _table(header, rows, cards=True) + f'<p class="soft">{note}</p>'


def _what_ran(runs: Sequence[Facts]) -> str:
    tests = {wording.test(run["metric"]) for run in runs}
    test = tests.pop().capitalize() if len(tests) == 1 else "Test metric"
    header = ("Plan", "Seed", "Status", "Updates", "Epochs", test, "Time", "Folder")
    rows = [
        (
            run["plan"],
            str(run["seed"]),
            run["status"],
            wording.count(run["num_updates"]),
            f"{run['epoch']:.4g} of {run['num_epochs']:g}",
            wording.value(run["test"], run["metric"]),
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
    return "\n".join(["<h2>What ran, on what</h2>", *lines, _table(header, rows, wide=(2, 7))])


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
    wide: Sequence[int] = (),
    cards: bool = False,
) -> str:
    """An HTML table. On a phone it scrolls, or with `cards` each row becomes a block.

    The first column and those in `wide` are flush left; the latter also wrap.
    """
    styles = ["" for _ in header]
    for column in (0, *wide):
        styles[column] = f' class="{"text wide" if column in wide else "text"}"'
    names = [_escape(name) for name in header]
    head = "".join(f"<th{style}>{name}</th>" for style, name in zip(styles, names, strict=True))
    labels = [f' data-label="{name}"' if cards else "" for name in names]
    body = ""
    for row in rows:
        first = f'<th scope="row"{styles[0]}>{_escape(row[0])}</th>'
        rest = zip(styles[1:], labels[1:], row[1:], strict=True)
        cells = "".join(f"<td{style}{label}>{_escape(cell)}</td>" for style, label, cell in rest)
        body += f"<tr>{first}{cells}</tr>\n"
    kind = "scroll cards" if cards else "scroll"
    return (
        f'<div class="{kind}" tabindex="0"><table>'
        f"<thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>"
    )


def _escape(words: str) -> str:
    return html.escape(words, quote=True)
