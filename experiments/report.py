"""Tables, figures and one HTML page from run folders.

    python -m experiments.report runs/digits --out=runs/digits/report

Takes run folders, or folders of run folders. Unfinished runs are shown as such. Exit status 2
where there is nothing to report on.
"""

import sys

from absl import app, flags

from batchgrow import page, report

OUT = flags.DEFINE_string("out", None, "Folder for index.html, report.json and figures/.")
JSON = flags.DEFINE_bool("json", False, "Print the facts as JSON instead of a table.")


def main(argv: list[str]) -> None:
    if len(argv) < 2:
        _fail("no run folder given: python -m experiments.report RUN [RUN ...] --out=DIR")
    try:
        runs = [report.read_run(path) for path in report.find_runs(argv[1:])]
        facts = report.write_report(runs, OUT.value)
    except (ValueError, OSError) as error:
        _fail(str(error))
    if JSON.value:
        print(page.as_json(facts), end="")
    else:
        print(f"{report.text(facts)}\n\n{OUT.value}/index.html")


def _fail(message: str) -> None:
    print(f"report: {message}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    flags.mark_flag_as_required("out")
    app.run(main)
