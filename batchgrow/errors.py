"""What errors say, of other libraries above all."""

LONGEST = 200  # characters


def first_line(error: BaseException) -> str:
    """Returns the first line of what an error says, cut if it is long; its kind if it is blank.

    >>> first_line(RuntimeError("no such slice\\nand a page of details"))
    'no such slice'
    >>> first_line(OSError("\\n"))
    'OSError'
    """
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return line if len(line) <= LONGEST else f"{line[:LONGEST]}..."
