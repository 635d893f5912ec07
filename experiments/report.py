"""Tables, figures and one HTML page from run folders.

    python -m experiments.report runs/digits --out=runs/digits/report

Takes run folders, or folders of run folders. Unfinished runs are shown as such. Exit status 2
where there is nothing to report on.
"""

import os

from absl import app, flags

from batchgrow import page, report
from experiments import cli

_OUT = flags.DEFINE_string("out", "", "Folder for index.html, report.json and figures/.")
_JSON = flags.DEFINE_bool("json", False, "Print the facts as JSON instead of a table.")


def main(argv: list[str]) -> int:
    """Writes the report and prints its facts; `argv[1:]` are the folders."""
    if len(argv) < 2 or not _OUT.value:
        return cli.complain("give run folders and a folder: RUN [RUN ...] --out=DIR", cli.BAD_INPUT)
    try:
        runs = [report.read_run(path) for path in report.find_runs(argv[1:])]
        facts = report.write_report(runs, _OUT.value)
    except (ValueError, OSError) as error:
        return cli.complain(error, cli.BAD_INPUT)
    if _JSON.value:
        print(page.as_json(facts), end="")
    else:
        print(f"{report.text(facts)}\n\nreport: {os.path.join(_OUT.value, 'index.html')}")
    return 0


if __name__ == "__main__":
    app.run(main)
