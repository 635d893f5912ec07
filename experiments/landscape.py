"""Measures finished runs: sharpness, the Hessian's spectrum, distance, the loss along a line.

    python -m experiments.landscape RUN [RUN ...]
    python -m experiments.landscape RUN --position=12800 --out=runs/earlier  # a checkpoint before

Each RUN is a run folder with a checkpoint. The newest one is measured, in evaluation mode, on the
first --examples of the training set, in whole chunks of 500. Of two runs, the loss is also measured
along the line between their solutions; running statistics of batch norm are interpolated with the
parameters. Runs with --config.trace.per_decade=8 also show the distance from the start over the
updates.
"""

import math
from typing import Any

from absl import flags
from etils import epath

from batchgrow.report import drawing, swept
from batchgrow.run import environment
from batchgrow.text_table import text_table
from experiments.lab.solutions import line_between, measure
from experiments.launch import launch
from experiments.result_files import check_writable, write_result

_OUT = flags.DEFINE_string("out", "runs/landscape", "Folder for landscape.json and landscape.png.")
_EXAMPLES = flags.DEFINE_integer("examples", 10_000, "Of the training set; chunks of 500.", 1)
_EPSILONS = flags.DEFINE_list("epsilons", ["1e-3", "5e-4"], "Sizes of Keskar's box.")
_STEPS = flags.DEFINE_integer("lanczos_steps", 30, "Products with the Hessian; 0: none.", 0)
_POSITION = flags.DEFINE_integer("position", None, "Examples seen; default: the last checkpoint.")
_POINTS = flags.DEFINE_integer("line_points", 25, "Places along the line between two runs.", 2)


def main(folders: list[str]) -> int:
    """Measures the runs in `folders`, and prints and writes what it found."""
    if not folders:
        raise ValueError("give run folders: RUN [RUN ...]")
    try:
        epsilons = [float(epsilon) for epsilon in _EPSILONS.value]
    except ValueError:
        epsilons = []
    if not epsilons or not all(0 < epsilon < math.inf for epsilon in epsilons):
        raise ValueError(f"--epsilons={','.join(_EPSILONS.value)}: give finite numbers above 0")
    out = epath.Path(_OUT.value) / "landscape"
    check_writable(out)
    found = {
        folder: measure(
            folder, epsilons, _EXAMPLES.value, num_steps=_STEPS.value, position=_POSITION.value
        )
        for folder in folders
    }
    line = None
    if len(folders) == 2:
        line = line_between(
            folders[0], folders[1], _EXAMPLES.value, _POINTS.value, position=_POSITION.value
        )
    charts, figure = charts_of(found, line), None
    if charts:
        columns = min(2, len(charts))
        drawn = drawing.draw(*map(swept.panel, charts), columns=columns, one_legend=False)
        figure = drawing.png(drawn)
    facts = {"runs": found, "line": line, "position": _POSITION.value}
    write_result(out, facts | environment.recorded(), figure)
    rows = [["run", "loss", *(f"sharpness {e:g}" for e in epsilons), "largest eigenvalue"]]
    for folder, facts in found.items():
        largest = f"{facts['eigenvalues'][0]:.4g}" if facts["eigenvalues"] else "-"
        cells = [f"{value:.4g}" for value in facts["sharpness"].values()]
        rows.append([folder, f"{facts['loss']:.4g}", *cells, largest])
    print(f"{text_table(rows, left=True)}\n\n{out}.json")
    return 0


def charts_of(
    found: dict[str, dict[str, Any]], line: dict[str, list[float]] | None
) -> list[dict[str, Any]]:
    """The panels of the figure, in the form of `report.swept`."""
    charts = []

    def add(title: str, x: str, y: str, lines: dict[str, list[tuple[float, float]]]) -> None:
        made = [
            {"label": label, "points": swept.points_of([(x, [y]) for x, y in points])}
            for label, points in lines.items()
            if points
        ]
        if made:
            charts.append({"title": title, "x": x, "y": y, "percent": False, "lines": made})

    for column, name in ((1, "distance from the start"), (2, "length of the path")):
        rows = {folder: facts["distance"] for folder, facts in found.items()}
        points = {folder: [(row[0], row[column]) for row in some] for folder, some in rows.items()}
        add(name.capitalize(), "updates", name, points)
    eigenvalues = {folder: facts["eigenvalues"][:10] for folder, facts in found.items()}
    add(
        "Largest eigenvalues of the Hessian",
        "rank",
        "eigenvalue",
        {folder: list(enumerate(some, start=1)) for folder, some in eigenvalues.items()},
    )
    if line:
        names = ("train_loss", "test_loss")
        pairs = {name: list(zip(line["place"], line[name], strict=True)) for name in names}
        add("Loss along the line", "place between the solutions", "loss", pairs)
    return charts


if __name__ == "__main__":
    launch(main, positional=True)
