"""Run folders -> tables for the terminal, JSON, figures and one HTML page. No jax.

`facts` computes every number once; the text, the JSON and the page only show them.
"""

from collections.abc import Sequence

from etils import epath

from batchgrow.report import drawing, figures, page, swept, wording
from batchgrow.report.facts import Facts, Paper, facts, families_of, text
from batchgrow.report.folders import Metric, Run, find_runs, read_run
from batchgrow.report.runs import PlanGroup, group_by_plan, paired_difference, summarize

__all__ = [
    "Facts",
    "Metric",
    "Paper",
    "PlanGroup",
    "Run",
    "facts",
    "find_runs",
    "group_by_plan",
    "paired_difference",
    "read_run",
    "summarize",
    "text",
    "write_report",
]


def write_report(
    runs: Sequence[Run],
    out_dir: str,
    paper: Paper | None = None,
    *,
    x: str | None = None,
    y: str | None = None,
) -> Facts:
    """Writes index.html, report.json and figures (PNG, SVG) into `out_dir`; returns the facts.

    Args:
      runs: the runs.
      out_dir: a folder, which is created.
      paper: the paper's numbers.
      x, y: the field and the column of the figure of a sweep (see `swept.swept`).

    Raises:
      ValueError: if no run has logged anything, if a number of the paper, x or y is wrong, or if
        `out_dir` is a run folder or has an index.html that is not a report's.
    """
    out = epath.Path(out_dir)
    if (out / "config.json").exists():
        raise ValueError(f"{out} is a run folder; take another folder for the report")
    if (out / "index.html").exists() and not (out / "report.json").exists():
        raise ValueError(
            f"{out / 'index.html'} is not a report's, as there is no report.json beside it; take "
            "another folder for the report"
        )
    found = facts(runs, paper, x=x, y=y)
    (out / "figures").mkdir(parents=True, exist_ok=True)
    families = families_of(group_by_plan(runs))
    lines = figures.lines_of_plans(families)
    drawings = []
    for number, (family, comparison) in enumerate(zip(families, found["comparisons"], strict=True)):
        prefix = f"{number + 1}_" if len(families) > 1 else ""
        panels = []
        if len(family) <= figures.MAX_LINES:
            panels = figures.panels(family, lines)
            _write_figure(out, f"{prefix}overview", drawing.draw(*panels[:4], columns=2))
        seconds = {plan["plan"]: plan["seconds"] for plan in comparison["plans"] if plan["seconds"]}
        if seconds:
            panels.append(figures.time_panel(seconds))
        drawn = {}
        for panel in panels:
            svg = _write_figure(out, prefix + panel.name, drawing.draw(panel))
            alternative = wording.alternative_text(panel.name, comparison, panel.is_log)
            drawn[panel.name] = page.Drawing(
                panel.title, drawing.inline_svg(svg, prefix + panel.name), alternative
            )
        drawings.append(drawn)
    grid = None
    if found["sweep"]:
        panel = swept.panel(found["sweep"])
        svg = _write_figure(out, panel.name, drawing.draw(panel))
        alternative = swept.alternative_text(found["sweep"])
        grid = page.Drawing(panel.title, drawing.inline_svg(svg, panel.name), alternative)
    (out / "report.json").write_text(page.as_json(found))
    (out / "index.html").write_text(page.html_page(found, drawings, grid, out_dir))
    return found


def _write_figure(out: epath.Path, name: str, figure: drawing.Figure) -> str:
    svg = drawing.svg(figure)
    (out / "figures" / f"{name}.svg").write_text(svg)
    (out / "figures" / f"{name}.png").write_bytes(drawing.png(figure))
    return svg
