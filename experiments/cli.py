"""Flags, configs and one-line errors of all commands."""

import contextlib
import difflib
import os
import pathlib
import re
import select
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise
from logging import LogRecord
from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags

from batchgrow.data.records import BadRecordError
from batchgrow.names import flatten, hint

# Exit statuses
BAD_INPUT = 2
BROKEN_PIPE = 141  # as shells have it
# A full disk, a damaged record, a device that is too small: the message says all.
TROUBLE = (OSError, MemoryError, BadRecordError)

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"
# What the parser of a flag says of a value of another type, and what the value may be.
EXPECTED = {
    "could not convert string to float": "a number",
    "invalid literal for int": "a whole number",
    "Non-boolean argument": "True or False",
}


class _Plain(logging.PythonFormatter):
    """Formats our own messages as "warning: ..."; absl's time and place stay before others'."""

    def format(self, record: LogRecord) -> str:
        if not record.name.startswith("batchgrow"):
            return super().format(record)
        return f"{record.levelname.lower()}: {record.getMessage()}"


class _OrNone(flags.ArgumentParser):
    """Reads "None" as None, and all else as `parser` does."""

    def __init__(self, parser: flags.ArgumentParser):
        self._parser = parser
        self.syntactic_help = parser.syntactic_help

    def parse(self, argument: Any) -> Any:
        return None if argument == "None" else self._parser.parse(argument)

    def flag_type(self) -> str:
        return self._parser.flag_type()


for _kind, _parser in (
    (float, flags.FloatParser()),
    (int, flags.IntegerParser()),
    (str, flags.ArgumentParser()),
):
    config_flags.register_flag_parser_for_type(_kind, _OrNone(_parser))


def config_flag() -> flags.FlagHolder:
    """The --config flag: `configs/NAME.py:VARIANT`, with --config.FIELD=VALUE beside it."""
    holder = _define(flags.FLAGS)
    flags.mark_flag_as_required("config")
    return holder


def _define(values: flags.FlagValues, argv: list[str] | None = None) -> flags.FlagHolder:
    """Defines --config. It is not locked, so that a model may have new fields (`_lock`)."""
    return config_flags.DEFINE_config_file(
        "config",
        None,
        "configs/NAME.py:VARIANT",
        flag_values=values,
        lock_config=False,
        sys_argv=argv,
        accept_new_attributes=True,
    )


def config_of(file: str, overrides: Sequence[str] = ()) -> Any:
    """Returns the config of `--config=FILE` with `--config.FIELD=VALUE` arguments after it.

    Raises:
      ValueError: for a file, a variant, a field or a value that is wrong, in one line.
      OSError: if there is no such file.
    """
    argv, values = ["", f"--config={file}", *overrides], flags.FlagValues()
    _define(values, argv)
    try:
        values(argv)
    except Exception as error:  # a config file may raise anything
        raise ValueError(_one_line(error, argv)) from error
    return _lock(values)


def run(main: Callable[[list[str]], int], *, positional: bool = False) -> None:
    """Parses the flags, calls `main` and exits with the status that it returns.

    Args:
      main: gets the arguments that are not flags.
      positional: whether there may be any.
    """
    with one_line_errors():
        app.run(main, flags_parser=partial(parse, positional=positional))


@contextlib.contextmanager
def one_line_errors(statuses: Mapping[type[Exception], int] | None = None) -> Iterator[None]:
    """Turns an error inside into one line and an exit status.

    A ValueError, from a flag, a config or the command, exits with 2. An error of the machine or of
    the data (`TROUBLE`) exits with 1. --verbosity=1 shows the traceback of both. Any other
    exception is a fault of the program and shows its traceback.

    Args:
      statuses: of other errors.
    """
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except tuple(statuses or ()) as error:
        sys.exit(complain(error, (statuses or {})[type(error)]))
    except ValueError as error:
        sys.exit(complain(error, BAD_INPUT))
    except TROUBLE as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            sys.exit(BROKEN_PIPE)
        # or a config file that is not there
        missing = "Configuration is not available" in str(error)
        sys.exit(complain(_one_line(error, sys.argv), BAD_INPUT if missing else 1))


def parse(argv: list[str], positional: bool = False, fields: bool = False) -> list[str]:
    """Parses the flags; returns the arguments that are not flags. A wrong flag exits with 2.

    The folder of the config file can be imported from, by the file and by `module:name` fields.

    Args:
      argv: the program and its arguments.
      positional: whether there may be arguments that are not flags.
      fields: whether `--config.FIELD` arguments are returned as they are.
    """
    for config in _config_files(argv):
        folder = os.path.dirname(os.path.abspath(config))
        if folder not in sys.path:
            sys.path.append(folder)
    for module, defined in flags.FLAGS.flags_by_module_dict().items():
        if module.startswith("experiments."):  # so that --help shows what commands share
            for flag in defined:
                flags.FLAGS.register_key_flag_for_module(argv[0], flag)
    logging.get_absl_handler().setFormatter(_Plain())
    try:
        rest = flags.FLAGS(argv, known_only=fields)[1:]
    except SystemExit:  # --help, which absl ends with status 1
        sys.exit(0)
    except BrokenPipeError:  # --help
        sys.exit(BROKEN_PIPE if _nobody_reads() else 1)
    except Exception as error:  # a config file may raise anything
        sys.exit(complain(_one_line(error, argv), BAD_INPUT))
    if "config" in flags.FLAGS and not fields:
        try:
            _lock(flags.FLAGS)
        except ValueError as error:
            sys.exit(complain(error, BAD_INPUT))
    for argument in rest if fields else ():
        if re.match(r"--?(no)?config\.", argument) and "=" not in argument:
            wrong: Exception | str = f"{argument}: give its value after an equals sign"
        elif re.match(r"--?config\.", argument):
            continue
        elif argument.startswith("-"):
            name = argument.lstrip("-").partition("=")[0]
            wrong = _one_line(flags.UnrecognizedFlagError(name), argv)
        else:
            wrong = f"unexpected argument {argument!r}; flags begin with --"
        sys.exit(complain(wrong, BAD_INPUT))
    if rest and not positional and not fields:
        sys.exit(complain(f"unexpected argument {rest[0]!r}; flags begin with --", BAD_INPUT))
    return rest


def _lock(values: flags.FlagValues) -> Any:
    """Locks and returns the config. Its model, task, optimizer and curve may have new fields.

    Raises:
      ValueError: for another field that the config file does not have.
      OSError: if there is no such file.
    """
    config: Any = values["config"].value
    given = config_flags.get_override_values(values["config"])
    # The parser of a field that the config file does not have knows no type.
    new = [n for n in given if values[f"config.{n}"].parser.flag_type() == "config_literal"]
    for name in new:
        section, _, field = name.rpartition(".")
        own = _own_fields(config, section)
        if field not in own and "*" not in own:
            has = [n for n in flatten(config.to_dict()) if n not in new]
            known = [field.name for field in _fields() if field.name in has]  # in their order
            known += [*has, *(f"{section}.{argument}" for argument in own)]
            raise ValueError(f"--config.{name}: no such config field{hint(name, known)}")
    config.lock()
    return config


def _own_fields(config: Any, section: str) -> list[str]:
    from batchgrow.config.task import own_fields  # It imports JAX.

    return own_fields(config, section)


def _config_files(argv: list[str]) -> list[str]:
    """The path of --config, without a variant."""
    given = [arg.partition("=")[2] for arg in argv if re.match(r"--?config=", arg)]
    given += [after for arg, after in pairwise(argv) if re.fullmatch(r"--?config", arg)]
    return [path.partition(":")[0] for path in given]


def _near_config(path: str) -> str:
    """The config file whose name is near, in that folder or in configs/; or all of configs/."""
    own = pathlib.Path(path).parent.glob("*.py") if os.path.dirname(path) else ()
    shipped = sorted(file for file in CONFIGS.glob("*.py") if file.stem != "__init__")
    files = {file.stem: os.path.relpath(file) for file in (*shipped, *own)}
    near = difflib.get_close_matches(pathlib.Path(path).stem, files, n=1)
    if near:
        return f"the nearest is {files[near[0]]}"
    return f"{os.path.relpath(CONFIGS)} has {', '.join(file.stem for file in shipped)}"


def _kind_of(flag: str) -> str | None:
    """What a declared field may be, in words; None for other flags."""
    if not flag.startswith("config."):
        return None
    kinds = (field.kind for field in _fields() if f"config.{field.name}" == flag)
    return next((kind.description for kind in kinds), None)


def _fields() -> Any:
    from batchgrow.config.fields import FIELDS  # It imports JAX.

    return FIELDS


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


def _one_line(error: Exception, argv: list[str]) -> str:
    """The heart of what absl and ml_collections say in many lines, with what may be meant."""
    text = str(error).strip()
    missing = re.search(r"\[Errno \d+\] (?:No such file|Is a directory).*: '([^']+)'", text)
    if missing and missing[1] in _config_files(argv):
        return f"--config: no such file: {missing[1]}; {_near_config(missing[1])}"
    for reason, expected in EXPECTED.items():
        refused = re.match(rf"flag --([^=]+)=(.*): \W*{reason}", text, re.S)
        if refused:
            return f"--{refused[1]}={refused[2]} must be {_kind_of(refused[1]) or expected}"
    if isinstance(error, flags.UnrecognizedFlagError):
        near = difflib.get_close_matches(error.flagname, list(flags.FLAGS), n=1)
        meant = f"; the nearest is --{near[0]}" if near else "; --help lists them"
        return f"--{error.flagname} is not a flag{meant}"
    section = re.match(r"flag --([^=]+)=.* as a ConfigDict", text)
    if section:
        return f"--{section[1]} is a section; give one of its fields: --{section[1]}.FIELD=VALUE"
    if "'get_config'" in text:
        return "--config: the file has no function get_config"
    if isinstance(error, AttributeError | KeyError):
        field = re.search(r'instead of "(\w+)"', text) or re.search(r"'(\w+)", text)
        parts = ((arg, arg.split("=")[0].split(".")[1:]) for arg in argv)
        wrong = next((arg for arg, names in parts if field and field[1] in names), "--config")
        name = wrong.split("=")[0]
        near = re.search(r'Did you mean "([^"]+)"', text)
        meant = f"; the nearest is {near[1]!r}" if near else ""
        if name != "--config":
            meant = hint(name.partition(".")[2], (field.name for field in _fields()))
        return f"{name}: no such config field{meant}"
    needed = re.search(r"Flag --(\w+) must have a value other than None\.$", text)
    if needed:
        example = ": --config=configs/NAME.py:VARIANT" if needed[1] == "config" else ""
        return f"--{needed[1]} is missing{example}"
    lines = [line.strip() for line in text.splitlines()]
    if "Traceback" in text:
        lines = [re.sub(r"^\w+(\.\w+)*: ", "", line) for line in lines[-1:]]
        return f"--config: {lines[0]}"
    return " ".join(lines)
