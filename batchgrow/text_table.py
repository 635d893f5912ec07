"""Text tables, for terminals."""

import textwrap
from collections.abc import Sequence

WIDTH = 100  # columns of a terminal
LEAST = 24  # of a first column that is broken


def text_table(rows: Sequence[Sequence[str]], *, left: bool = False) -> str:
    """Returns rows of cells in columns, one line for each row.

    Cells are flush right and two spaces apart, or one space apart if the table would
    otherwise be wider than 100 columns.

    Args:
      rows: cells, as many in each row; the first row is usually the header.
      left: the first column is flush left. Its cells are broken into several lines if the table
        would otherwise be too wide.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    if left:
        room = WIDTH - sum(widths[1:]) - 2 * len(widths[1:])
        widths[0] = min(widths[0], max(room, LEAST))
    gap = "  " if sum(widths) + 2 * (len(widths) - 1) <= WIDTH else " "
    lines = []
    for row in rows:
        first, *more = textwrap.wrap(row[0], widths[0]) or [""] if left else [row[0]]
        cells = [first.ljust(widths[0]) if left else first.rjust(widths[0])]
        lines += [gap.join([*cells, *map(str.rjust, row[1:], widths[1:])]).rstrip(), *more]
    return "\n".join(lines)
