"""`python -m experiments` lists the commands with one line each."""

import ast
import pathlib

from experiments import cli

HERE = pathlib.Path(__file__).parent


def main(_: list[str]) -> int:
    """Prints the list."""
    for path in sorted(HERE.glob("*.py")):
        source = path.read_text(encoding="utf-8")
        if '__name__ == "__main__"' in source and path.name != "__main__.py":
            summary = (ast.get_docstring(ast.parse(source)) or "").splitlines()[0]
            print(f"python -m experiments.{path.stem:<22} {summary}")
    return 0


if __name__ == "__main__":
    cli.run(main)
