"""Flags in, one line of complaint out: what all commands share."""

import difflib
import os
import re
import select
import sys
from collections.abc import Callable

from absl import app, flags, logging
from ml_collections import config_flags

from batchgrow.data.sources import BadRecordError

# Exit statuses
BAD_INPUT = 2
BROKEN_PIPE = 141  # as shells have it
# A full disk, a damaged record, a device that is too small: the message says all.
TROUBLE = (OSError, MemoryError, BadRecordError)


def config_flag() -> flags.FlagHolder:
    """The --config flag: `configs/NAME.py:VARIANT`, with --config.FIELD=VALUE beside it."""
    holder = config_flags.DEFINE_config_file("config", None, "configs/NAME.py:VARIANT")
    flags.mark_flag_as_required("config")
    return holder


def run(main: Callable[..., int], *, positional: bool = False) -> None:
    """Parses the flags, calls `main` and exits with the status it returns.

    With `positional`, `main` gets the list of arguments that are no flags; otherwise there may be
    none.

    A ValueError, from a flag, a config or `main`, becomes one line and exit status 2; an error of
    the machine or the data (`TROUBLE`) one line and exit status 1, both with their traceback under
    --verbosity=1. Any other exception is a fault of the program and shows its traceback.
    """

    def guarded(argv: list[str]) -> int:
        if argv[1:] and not positional:
            return complain(f"unexpected argument {argv[1]!r}; flags begin with --", BAD_INPUT)
        try:
            status = main(argv[1:]) if positional else main()
            sys.stdout.flush()
            return status
        except ValueError as error:
            return complain(error, BAD_INPUT)
        except TROUBLE as error:
            if isinstance(error, BrokenPipeError) and _nobody_reads():
                return BROKEN_PIPE
            # or a config file that is not there
            missing = "Configuration is not available" in str(error)
            return complain(_one_line(error, argv), BAD_INPUT if missing else 1)

    app.run(guarded, flags_parser=_parse)


def complain(error: Exception | str, status: int) -> int:
    """Prints one line and returns the exit status."""
    logging.debug("The traceback:", exc_info=isinstance(error, Exception) and error)
    print(f"error: {error}", file=sys.stderr, flush=True)
    return status


def _nobody_reads() -> bool:
    """Whether what stdout leads to is closed, as `| head` does; what is left goes nowhere then."""
    stdout = select.poll()
    stdout.register(1, 0)
    closed = any(event & select.POLLERR for _, event in stdout.poll(0))
    if closed:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return closed


def _parse(argv: list[str]) -> list[str]:
    for module, defined in flags.FLAGS.flags_by_module_dict().items():
        if module.startswith("experiments."):  # so that --help shows what commands share
            for flag in defined:
                flags.FLAGS.register_key_flag_for_module(argv[0], flag)
    try:
        return flags.FLAGS(argv)
    except SystemExit:  # --help, which absl ends with status 1
        sys.exit(0)
    except BrokenPipeError:  # --help
        sys.exit(BROKEN_PIPE if _nobody_reads() else 1)
    except Exception as error:  # a config file may raise anything
        sys.exit(complain(_one_line(error, argv), BAD_INPUT))


def _one_line(error: Exception, argv: list[str]) -> str:
    """The heart of what absl and ml_collections say in many lines, with a near field or flag."""
    text = str(error).strip()
    missing = re.search(r"\[Errno 2\] No such file or directory: '([^']+)'", text)
    if missing:
        return f"--config: no such file: {missing[1]}"
    if isinstance(error, flags.UnrecognizedFlagError):
        near = difflib.get_close_matches(error.flagname, list(flags.FLAGS), n=1)
        hint = f"; the nearest is --{near[0]}" if near else "; --help lists them"
        return f"--{error.flagname} is no flag{hint}"
    if isinstance(error, AttributeError | KeyError):
        field = re.search(r'instead of "(\w+)"', text) or re.search(r"'(\w+)", text)
        wrong = next((a for a in argv if field and field[1] in a), "--config")
        near = re.search(r'Did you mean "([^"]+)"', text)
        hint = f"; the nearest is {near[1]!r}" if near else ""
        return f"{wrong.split('=')[0]}: no such config field{hint}"
    if text.endswith("must have a value other than None."):
        return "--config is missing: --config=configs/NAME.py:VARIANT"
    lines = [line.strip() for line in text.splitlines()]
    if "Traceback" in text:
        lines = [re.sub(r"^\w+(\.\w+)*: ", "", line) for line in lines[-1:]]
        return f"--config: {lines[0]}"
    return " ".join(lines)
