"""Reads the text of a compiled program: the compiler's cycles, kernels, and what devices send.

XLA's TPU compiler notes on each instruction how many cycles it estimates for it, collectives
excepted. Their sum, with the body of a loop counted once for each trip, is an estimate that is the
same on every machine. It is no measured time.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
)
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.-]+) = (.*?) ([a-z][\w-]*)\(")
_CALLED = re.compile(
    r"\b(?:to_apply|calls|body|condition|branch_computations)=(?:\{([^}]*)\}|%?([\w.-]+))"
)
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CONSTANT = re.compile(r" s32\[\]\S* constant\((\d+)\)")
_TARGET = re.compile(r'custom_call_target="([^"]+)"')
_FUSION = re.compile(r'"fusion_backend_config":\{"kind":"([^"]+)"')
_KIND = re.compile(r"\bkind=k(\w+)")
_ARRAY = re.compile(r"\b(pred|[sufbc]\w*?(\d+)\w*)\[([\d,]*)\]")


@dataclass(frozen=True)
class Instruction:
    """An instruction of a compiled program.

    Attributes:
      name: unique in the program.
      opcode: such as "fusion".
      shape: the text of its result's shape.
      cycles: the compiler's estimate for it alone; 0 without one.
      trips: how often its update runs it.
      is_once: whether it is outside of the loop over the updates of a dispatch.
      is_fused: whether it is a part of another instruction, which has the cycles.
      text: the whole line.
    """

    name: str
    opcode: str
    shape: str
    cycles: int
    trips: int
    is_once: bool
    is_fused: bool
    text: str

    @property
    def num_bytes(self) -> int:
        """The bytes of its result."""
        return sum(_array_bytes(*found) for found in _ARRAY.findall(self.shape))


def instructions(text: str) -> Iterator[Instruction]:
    """Yields the instructions that a call of a program runs, each place once.

    The number of trips of the loop over the updates of a dispatch is not known to the compiler, so
    its body counts once, as one update.

    Args:
      text: `executable.as_text()`.
    """
    computations, entry = _computations(text)
    waiting = [(entry, 1, True, False)]
    has_loop = any(_trips(line, computations) == 0 for line in computations[entry])
    while waiting:
        name, trips, is_once, is_fused = waiting.pop()
        for line in computations[name]:
            found = _INSTRUCTION.match(line)
            if found is None:
                continue
            cycles = _CYCLES.search(line)
            opcode = found[3]
            yield Instruction(
                name=found[1],
                opcode=opcode,
                shape=found[2],
                cycles=int(cycles[1]) if cycles else 0,
                trips=trips,
                is_once=is_once and has_loop,
                is_fused=is_fused,
                text=line,
            )
            inner, once = trips, is_once
            if opcode == "while":
                known = _trips(line, computations)
                inner, once = trips * max(1, known or 0), is_once and known != 0
            for called in _called(line):
                if called in computations and (opcode not in _APPLIED):
                    waiting.append((called, inner, once, is_fused or opcode not in _CONTROL))


_CONTROL = ("while", "conditional", "call", "async-start")
_APPLIED = ("reduce", "reduce-window", "sort", "scatter", "select-and-scatter", "map", *COLLECTIVES)


def _trips(line: str, computations: Mapping[str, Sequence[str]]) -> int | None:
    """The trips of a loop, 0 if they are not known; None for another instruction.

    JAX's scans count from 0 to a constant, which is in the condition.
    """
    found = _INSTRUCTION.match(line)
    if found is None or found[3] != "while":
        return None
    known = _TRIPS.search(line)
    if known:
        return int(known[1])
    condition = re.search(r"\bcondition=%?([\w.-]+)", line)
    lines = computations.get(condition[1], ()) if condition else ()
    constants = [int(x[1]) for x in map(_CONSTANT.search, lines) if x]
    return constants[0] if len(constants) == 1 else 0


def _called(line: str) -> list[str]:
    groups = [several or one for several, one in _CALLED.findall(line)]
    return [name.strip().lstrip("%") for group in groups for name in group.split(",")]


def _computations(text: str) -> tuple[Mapping[str, list[str]], str]:
    """The lines of each computation by its name, and the name of the entry."""
    computations: dict[str, list[str]] = {}
    entry = name = ""
    for line in text.splitlines():
        head = _COMPUTATION.match(line)
        if head:
            name = head[2]
            computations[name] = []
            entry = name if head[1] else entry
        elif name and line.startswith(" "):
            computations[name].append(line)
    return computations, entry


def cycles(text: str) -> tuple[int, int]:
    """Returns the compiler's estimate in cycles: (once in a dispatch, for each of its updates).

    Both are 0 where the compiler makes no estimate. A dispatch of one update has no loop, and all
    of it counts for the update.

    Args:
      text: `executable.as_text()`.
    """
    once = each = 0
    for x in instructions(text):
        if not x.is_fused:
            once += x.cycles * x.trips * x.is_once
            each += x.cycles * x.trips * (not x.is_once)
    return once, each


def collectives(text: str) -> list[dict[str, Any]]:
    """Returns what the devices send each other in an update: opcode, dtypes, count and bytes.

    The bytes are those of the result on each device.
    """
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for x in instructions(text):
        opcode = x.opcode.removesuffix("-start")
        if opcode not in COLLECTIVES:
            continue
        dtypes = "+".join(sorted({dtype for dtype, _, _ in _ARRAY.findall(x.shape)}))
        row = found.setdefault(
            (opcode, dtypes), {"opcode": opcode, "dtype": dtypes, "count": 0, "bytes": 0}
        )
        row["count"] += x.trips
        row["bytes"] += x.trips * x.num_bytes
    return [found[key] for key in sorted(found)]


def kernels(text: str) -> dict[str, int]:
    """Returns how often an update calls a library or a fusion, by the name of its kind.

    On GPUs "__cudnn$convForward" and similar names are calls of cuDNN, and "__triton..." are
    fusions that XLA compiles with Triton. "Loop fusion" and "Input fusion" are XLA's other fusions;
    the latter end in a reduction.
    """
    found: dict[str, int] = {}
    for x in instructions(text):
        if x.is_fused or x.opcode not in ("custom-call", "fusion"):
            continue
        own = _TARGET.search(x.text) or _FUSION.search(x.text)
        kind = _KIND.search(x.text)
        name = own[1] if own else f"{kind[1]} fusion" if kind else x.opcode
        found[name] = found.get(name, 0) + x.trips
    return dict(sorted(found.items()))


def _array_bytes(dtype: str, bits: str, dims: str) -> int:
    size = math.prod(int(d) for d in dims.split(",") if d)
    return size if dtype == "pred" else -(-size * int(bits) // 8)
