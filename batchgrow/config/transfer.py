"""The fields under `init`: where the parameters of a run come from, and which of them stay."""

from typing import Any

import jax

from batchgrow.config.kinds import ConfigDict
from batchgrow.run.variables import read_variables
from batchgrow.tasks import Task
from batchgrow.tasks.transfer import Transfer, by_name, matching


def transferred(config: ConfigDict, task: Task, example: Any, *, to_read: bool = True) -> Task:
    """Returns the task that starts as `config.init` says; the task itself if it says nothing.

    Args:
      task: what is trained.
      example: the shapes and dtypes of one example.
      to_read: whether `init.run` is read.

    Raises:
      ValueError: if a pattern matches no layer, or a layer of `init.run` is missing there or has
        another shape.
    """
    run, frozen = config.init.run if to_read else None, config.init.frozen
    if config.init.layers is not None and config.init.run is None:
        raise ValueError(
            f"init.layers is {config.init.layers!r}, but init.run is not set; set it to the run "
            "that the layers come from"
        )
    if run is None and frozen is None:
        return task
    one = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *x.shape), x.dtype), example)
    ours = by_name(jax.eval_shape(task.init, jax.random.key(0), one))
    start: dict[str, Any] = {}
    if run is not None:
        taken = _matching("init.layers", ours, config.init.layers or "*")
        theirs = _read(run)
        params_first = sorted(taken, key=lambda name: (not name.startswith("params/"), name))
        _check_shapes(run, {name: ours[name] for name in params_first}, theirs)
        start = {name: theirs[name] for name in taken}
    params = [name for name in ours if name.startswith("params/")]
    return Transfer(task, start, frozenset(_matching("init.frozen", params, frozen or "")))


def _matching(field: str, names: Any, patterns: str) -> set[str]:
    try:
        return matching(names, patterns)
    except ValueError as error:
        raise ValueError(f"{field} {patterns!r}: {error}") from error


def _read(run: str) -> dict[str, Any]:
    try:
        return by_name(read_variables(run))
    except ValueError as error:
        raise ValueError(f"init.run: {error}") from error


def _check_shapes(run: str, ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Raises ValueError with the arrays that are missing or have another shape in `theirs`."""
    wrong = {}
    for name, own in ours.items():
        if name not in theirs:
            wrong[name] = f"{name} is missing there"
        elif theirs[name].shape != own.shape:
            wrong[name] = f"{name} is {theirs[name].shape} there and {own.shape} here"
    if not wrong:
        return
    layers = dict.fromkeys("/".join(name.split("/")[1:-1] or name.split("/")[1:]) for name in wrong)
    left_out = ",".join(["*", *(f"!{layer}" for layer in layers)])
    shown = [*list(wrong.values())[:4], *([f"{len(wrong) - 4} more"] if len(wrong) > 4 else [])]
    raise ValueError(
        f"init.run {run}: {'; '.join(shown)}; to draw these layers anew, set init.layers to "
        f"{left_out!r}"
    )
