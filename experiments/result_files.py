"""The result of a command that measures, in OUT.json and OUT.png. No flags."""

import json
import os
from typing import Any

from etils import epath

from batchgrow.run.files import write_whole


def check_writable(out: epath.Path) -> None:
    """Makes the folder of `out`, writes an empty file there and removes it.

    Call it before what takes long.

    Raises:
      OSError: if that is not possible.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        empty = out.with_name(f"{out.name}.{os.getpid()}")
        empty.write_text("")
        empty.unlink(missing_ok=True)
    except OSError as error:
        reason = error.strerror or error
        raise OSError(f"--out={out}: cannot write there ({reason}); take another place") from error


def write_result(out: epath.Path, found: dict[str, Any], figure: bytes | None) -> None:
    """Writes OUT.json and OUT.png, each as a whole.

    Args:
      out: the path without its extension.
      found: the result.
      figure: the PNG; None if there is nothing to draw.

    Raises:
      OSError: if they cannot be written.
    """
    write_whole(out.with_name(f"{out.name}.json"), f"{json.dumps(found, indent=1)}\n".encode())
    if figure is not None:
        write_whole(out.with_name(f"{out.name}.png"), figure)
