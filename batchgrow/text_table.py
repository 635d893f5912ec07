"""Text tables, for terminals."""

from collections.abc import Sequence

WIDTH = 100  # columns of a terminal


def text_table(rows: Sequence[Sequence[str]], *, left: bool = False) -> str:
    """Returns rows of cells in columns, one line for each row.

    Cells are flush right and two spaces apart, or one space apart if the table would
    otherwise be wider than 100 columns.

    Args:
      rows: cells, as many in each row; the first row is usually the header.
      left: the first column is flush left, and cut if the table would otherwise be too wide.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    if left:
        widths[0] = min(widths[0], WIDTH - sum(widths[1:]) - 2 * len(widths[1:]))
    gap = "  " if sum(widths) + 2 * (len(widths) - 1) <= WIDTH else " "
    return "\n".join(
        gap.join(
            [
                _cut(row[0], widths[0]).ljust(widths[0]) if left else row[0].rjust(widths[0]),
                *map(str.rjust, row[1:], widths[1:]),
            ]
        ).rstrip()
        for row in rows
    )


def _cut(cell: str, width: int) -> str:
    return cell if len(cell) <= width else cell[: width - 1] + "…"
