"""Run folders -> tables for the terminal, JSON, figures and one HTML page. No jax.

`facts` computes every number once; the text, the JSON and the page only show them.
"""

from collections.abc import Sequence

from etils import epath

from batchgrow.report import figures, page, wording
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


def write_report(runs: Sequence[Run], out_dir: str, paper: Paper | None = None) -> Facts:
    """Writes index.html, report.json and figures (PNG, SVG) into `out_dir`; returns the facts.

    Raises:
      ValueError: if no run has logged anything, or a number of the paper is out of its range.
    """
    found = facts(runs, paper)
    out = epath.Path(out_dir)
    (out / "figures").mkdir(parents=True, exist_ok=True)
    families = families_of(group_by_plan(runs))
    lines = figures.lines_of_plans(families)
    drawings = []
    for number, (family, comparison) in enumerate(zip(families, found["comparisons"], strict=True)):
        prefix = f"{number + 1}_" if len(families) > 1 else ""
        panels = figures.panels(family, lines)
        _write_figure(out, f"{prefix}overview", figures.draw(*panels[:4], columns=2))
        seconds = {plan["plan"]: plan["seconds"] for plan in comparison["plans"] if plan["seconds"]}
        if seconds:
            panels.append(figures.time_panel(seconds))
        drawn = {}
        for panel in panels:
            svg = _write_figure(out, prefix + panel.name, figures.draw(panel))
            alternative = wording.alternative_text(panel.name, comparison, panel.is_log)
            drawn[panel.name] = page.Drawing(
                panel.title, figures.inline_svg(svg, prefix + panel.name), alternative
            )
        drawings.append(drawn)
    (out / "report.json").write_text(page.as_json(found))
    (out / "index.html").write_text(page.html_page(found, drawings, out_dir))
    return found


def _write_figure(out: epath.Path, name: str, figure: figures.Figure) -> str:
    svg = figures.svg(figure)
    (out / "figures" / f"{name}.svg").write_text(svg)
    (out / "figures" / f"{name}.png").write_bytes(figures.png(figure))
    return svg
