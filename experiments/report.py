"""Write tables, figures and one HTML page from run folders.

    python -m experiments.report runs/digits --out=runs/digits/report

The arguments are run folders or folders that contain run folders. Unfinished runs are marked. The
exit status is 2 if there is nothing to report on.
"""

import os

from absl import flags
from etils import epath

from batchgrow import report
from batchgrow.report import page
from experiments import cli
from experiments.result_files import check_writable

_OUT = flags.DEFINE_string("out", "", "Folder for index.html, report.json and figures/.")
_X = flags.DEFINE_string("x", None, "A field: the axis of the figure of a sweep.")
_Y = flags.DEFINE_string("y", None, "A column of the rows: what that figure shows.")
_JSON = flags.DEFINE_bool("json", False, "Print the facts as JSON instead of a table.")


def main(folders: list[str]) -> int:
    """Writes the report on the runs in `folders` and prints its facts."""
    if not folders or not _OUT.value:
        raise ValueError("give run folders and a folder for the report: RUN [RUN ...] --out=DIR")
    paths = report.find_runs(folders)
    check_writable(epath.Path(_OUT.value) / "index.html")
    runs = [report.read_run(path) for path in paths]
    facts = report.write_report(runs, _OUT.value, x=_X.value, y=_Y.value)
    if _JSON.value:
        print(page.as_json(facts), end="")
    else:
        print(f"{report.text(facts)}\n\nreport: {os.path.join(_OUT.value, 'index.html')}")
    return 0


if __name__ == "__main__":
    cli.run(main, positional=True)
