"""`python -m experiments` lists the commands with one line each."""

import ast
import pathlib

from experiments import cli

HERE = pathlib.Path(__file__).parent


def main(_: list[str]) -> int:
    """Prints the list."""
    found = {path.stem: path for path in HERE.glob("*.py") if path.name != "__main__.py"}
    found |= {path.parent.name: path for path in HERE.glob("*/__main__.py")}
    for name, path in sorted(found.items()):
        source = path.read_text(encoding="utf-8")
        if '__name__ == "__main__"' in source:
            summary = (ast.get_docstring(ast.parse(source)) or "").splitlines()[0]
            print(f"python -m experiments.{name:<22} {summary}")
    return 0


if __name__ == "__main__":
    cli.run(main)
