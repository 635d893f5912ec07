"""Checkpoints with Orbax: asynchronous, atomic, named by `examples_seen`."""

import contextlib
import json
import logging
import math
import re
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from batchgrow.errors import first_line
from batchgrow.run import s3
from batchgrow.run.agreement import all_agree
from batchgrow.run.barriers import Barriers, BrokenBarrier
from batchgrow.run.files import cannot_write, is_remote, unused
from batchgrow.run.folder import (
    FORMAT,
    Config,
    FolderError,
    check_config,
    check_number,
    run_folder,
    trajectory_fields,
)
from batchgrow.tasks import Metric

log = logging.getLogger(__name__)
Notes = dict[str, Any]
State = TypeVar("State")
Result = TypeVar("Result")
EXIT_SECONDS = 15.0  # for a checkpoint that is being written when an error ends the run


@dataclass(frozen=True)
class LastAndBest(ocp.checkpoint_managers.PreservationPolicy):
    """Keeps the last checkpoints, the best one, and those that are to be kept.

    Attributes:
      keep: how many of the last ones.
      better: whether lower or higher scores are better.
      scores: the scores of the evaluated checkpoints, by `examples_seen`.
      kept: the checkpoints that are never removed, by `examples_seen`.
    """

    keep: int
    better: Literal["lower", "higher"]
    scores: dict[int, float] = field(default_factory=dict)
    kept: set[int] = field(default_factory=set)

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        """For each checkpoint, oldest first, whether to keep it."""
        steps = [checkpoint.step for checkpoint in checkpoints]
        # The last of equal scores. Without any score, this is the last checkpoint.
        best = max(steps, key=lambda step: (self._rank(step), step))
        return [step in {*steps[-self.keep :], best, *self.kept} for step in steps]

    def _rank(self, step: int) -> float:
        score = self.scores.get(step, math.nan)
        if math.isnan(score):
            return -math.inf
        return score if self.better == "higher" else -score


class Manager(ocp.CheckpointManager):
    """Orbax's manager, but it leaves JAX's preemption service alone.

    Orbax asks the service at every save, with the step as its number. The service tells a process
    only once that it should stop, and two callers with different counters would lose signals.
    """

    def reached_preemption(self, step: int) -> bool:
        """Returns False, because `signals.Preemption` asks the service."""
        return False


class Checkpoints:
    """The checkpoints of one run folder.

    Each holds the training state with a checksum of every array, notes (JSON), its position and the
    config, all verified on restoring. The last `keep` are kept, and the best by `metric`.

    Args:
      workdir: the run folder; checkpoints are in `checkpoints/EXAMPLES_SEEN`.
      keep: how many of the last checkpoints to keep.
      metric: the metric of the task that scores a checkpoint.
      config: the config of the run, as plain nested dicts.
      defaults: as in `folder.check_config`.
      is_own: whether this process trains here and holds the lock of the folder. What an
        interrupted save has left behind is then removed; while another process trains it may be a
        save that is under way.

    Raises:
      FolderError: if `checkpoints` is a file.
      OSError: if the folder cannot be written.
    """

    def __init__(
        self,
        workdir: epath.Path,
        *,
        keep: int,
        metric: Metric,
        config: Config,
        defaults: Mapping[str, Any] | None = None,
        is_own: bool = False,
    ):
        self._digest = jax.jit(digest)
        self._workdir = workdir
        self._folder = workdir / "checkpoints"
        self._config, self._defaults = trajectory_fields(config), defaults
        self._policy = LastAndBest(keep, metric.better)
        if str(workdir).startswith("s3://"):
            s3.teach_orbax()
        if not is_remote(workdir) and self._folder.exists() and not self._folder.is_dir():
            raise FolderError(f"{self._folder} is a file; remove it or choose another workdir")
        with _named(self._folder):
            self._manager = Manager(
                self._folder,
                options=ocp.CheckpointManagerOptions(
                    preservation_policy=self._policy,
                    cleanup_tmp_directories=is_own,
                    async_options=ocp.AsyncOptions(
                        # Where a folder cannot be made, threads would wait for it for 300 s.
                        create_directories_asynchronously=False,
                        barrier_sync_fn=Barriers(),
                    ),
                ),
                item_names=("state", "notes"),
            )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
            return
        # Orbax may wait for minutes for a thread or a process that has failed.
        closing = threading.Thread(target=self._close_after_error, daemon=True)
        closing.start()
        closing.join(EXIT_SECONDS)

    def save(
        self,
        examples_seen: int,
        state: Any,
        notes: Notes,
        score: float | None,
        is_kept: bool = False,
    ) -> None:
        """Copies the state off the device, then writes it in the background.

        Args:
          examples_seen: the position; a checkpoint that is already there stays as it is.
          state: a pytree of arrays; every process passes its own copy.
          notes: JSON that is restored with the state.
          score: the metric measured at this position, or None.
          is_kept: whether this checkpoint is never removed.

        Raises:
          OSError: if this or an earlier checkpoint could not be written.
        """
        steps = self._manager.all_steps()
        if examples_seen in steps:
            return
        scores = self._policy.scores
        for gone in scores.keys() - set(steps):
            del scores[gone]
        if score is not None:
            scores[examples_seen] = score
        if is_kept:
            self._policy.kept.add(examples_seen)
        body = {
            "format": FORMAT,
            "examples_seen": examples_seen,
            "notes": notes,
            "config": self._config,
            "scores": scores,
            "kept": sorted(self._policy.kept),
        }
        text = json.dumps(body)
        sealed = {"text": text, "crc32": zlib.crc32(text.encode())}
        tree = {"state": state, "digest": self._digest(state)}
        with _named(self._folder):
            self._manager.save(
                examples_seen,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(tree), notes=ocp.args.JsonSave(sealed)
                ),
            )

    def restore(self, like: State) -> tuple[int, State, Notes] | None:
        """Returns the newest complete checkpoint, placed as `like`; None if there are none.

        Newer ones that are damaged are set aside as `EXAMPLES_SEEN.bad`, with a warning.

        Raises:
          FolderError: if no checkpoint is complete (all of them stay unchanged), or if they belong
            to another config or another version.
        """
        damaged: dict[int, str] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                state, body = self._read(step, like)
            except _Damaged as error:
                damaged[step] = str(error)
                continue
            for bad, reason in damaged.items():
                self._set_aside(bad, reason)
            self._policy.scores.update({int(k): v for k, v in body["scores"].items()})
            self._policy.kept.update(body.get("kept", ()))
            return step, state, body["notes"]
        if damaged:
            raise FolderError(
                f"{self._folder}: no checkpoint can be read (the newest, {max(damaged)}: "
                f"{damaged[max(damaged)]}); copy one back from elsewhere, or take another workdir "
                "to start over; nothing was changed here"
            )
        return None

    def positions(self) -> list[int]:
        """Returns the positions of the checkpoints, in order."""
        return sorted(self._manager.all_steps())

    def read(self, examples_seen: int, like: State) -> tuple[State, Notes]:
        """Returns the state and the notes of one checkpoint.

        Raises:
          FolderError: if it is missing or damaged, or belongs to another config or version.
        """
        check_position(self._workdir, examples_seen, self.positions())
        try:
            state, body = self._read(examples_seen, like)
        except _Damaged as error:
            raise FolderError(
                f"{self._folder / str(examples_seen)} is damaged ({error}); take another one"
            ) from error
        return state, body["notes"]

    def wait(self) -> None:
        """Returns when every checkpoint is on disk.

        Raises:
          OSError: as `save`.
        """
        with _named(self._folder):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for what is being written, then closes.

        Raises:
          OSError: as `save`.
        """
        with _named(self._folder):
            self._manager.close()

    def _close_after_error(self) -> None:
        try:
            self.close()
        except OSError as error:
            log.warning("%s", error)  # beside the error that ends the run

    def _read(self, step: int, like: State) -> tuple[State, dict[str, Any]]:
        body = _together(self._read_notes, step)
        check_number(self._folder / str(step), body.get("format"))
        if body["examples_seen"] != step:
            raise _Damaged(f"it was saved at {body['examples_seen']} examples")
        before, defaults = body["config"], self._defaults
        check_config(self._workdir, before, self._config, override=False, defaults=defaults)
        return _together(self._read_state, step, like), body

    def _read_notes(self, step: int) -> dict[str, Any]:
        args = ocp.args.Composite(notes=ocp.args.JsonRestore())
        sealed = self._manager.restore(step, args=args)["notes"]
        if zlib.crc32(sealed["text"].encode()) != sealed["crc32"]:
            raise ValueError("the checksum of its notes is wrong")
        return json.loads(sealed["text"])

    def _read_state(self, step: int, like: State) -> State:
        # With the sharding of the state: Orbax restores on other devices only what has one.
        sums, sharding = jax.eval_shape(digest, like), jax.tree.leaves(like)[0].sharding
        sums = jax.ShapeDtypeStruct(sums.shape, sums.dtype, sharding=sharding)
        tree = {"state": like, "digest": sums}
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, tree)
        args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
        restored = self._manager.restore(step, args=args)["state"]
        expected = np.asarray(restored["digest"])
        if not np.array_equal(np.asarray(self._digest(restored["state"])), expected):
            raise ValueError("the checksum of its arrays is wrong")
        return restored["state"]

    def _set_aside(self, step: int, reason: str) -> None:
        bad = unused(self._folder, f"{step}.bad")
        log.warning(
            "checkpoint %s is damaged (%s); set aside as %s, continuing from the one before",
            self._folder / str(step),
            reason,
            bad.name,
        )
        if jax.process_index() == 0:
            (self._folder / str(step)).rename(bad)
        multihost_utils.sync_global_devices(f"set aside {step}")
        self._manager.reload()


class _Damaged(Exception):
    """A checkpoint cannot be used on every process."""


def _together(read: Callable[..., Result], *args: Any) -> Result:
    """Returns the result of `read` if it succeeds everywhere; else raises _Damaged on all."""
    result, reason = None, "another process cannot read it"
    try:
        result = read(*args)
    except Exception as error:  # Damage can cause any error of Orbax, TensorStore and JSON.
        reason = _reason(error)
    if not all_agree(result is not None) or result is None:
        raise _Damaged(reason)
    return result


def digest(tree: Any) -> jax.Array:
    """A uint32 checksum of each leaf, of shape (num_leaves,), that any flipped bit changes.

    Each word is weighted by an odd number, so that no single flip cancels modulo 2^32. Integer
    arithmetic is exact on every backend; it runs on the device, beside training.
    """
    return jnp.stack([_checksum(leaf) for leaf in jax.tree.leaves(tree)])


def _checksum(leaf: jax.Array) -> jax.Array:
    leaf = leaf.astype(jnp.uint8) if leaf.dtype == jnp.bool_ else leaf
    unsigned = {1: jnp.uint8, 2: jnp.uint16}.get(leaf.dtype.itemsize, jnp.uint32)
    words = jax.lax.bitcast_convert_type(leaf, unsigned).ravel().astype(jnp.uint32)
    return jnp.sum(words * (2 * jnp.arange(words.size, dtype=jnp.uint32) + 1), dtype=jnp.uint32)


def positions_of(workdir: str) -> list[int]:
    """Returns the positions of all checkpoints, complete or damaged, in order.

    A folder that cannot be read counts as empty: `claim` reports what is wrong with it.
    """
    try:
        names = [path.name for path in (run_folder(workdir) / "checkpoints").iterdir()]
    except Exception:  # the client of an object store raises its own kinds
        return []
    return sorted(int(name) for name in names if name.isdigit())


def check_position(workdir: epath.Path, examples_seen: int, positions: Sequence[int]) -> None:
    """Checks that a run has a checkpoint at this position.

    Args:
      workdir: the run folder.
      examples_seen: the position.
      positions: those of all its checkpoints.

    Raises:
      FolderError: if it has none there; the message says where it has some.
    """
    if examples_seen not in positions:
        raise FolderError(
            f"{workdir} has no checkpoint at {examples_seen} examples; it has "
            f"{', '.join(map(str, positions)) or 'none'} (run.keep_checkpoints keeps more)"
        )


@contextlib.contextmanager
def _named(folder: epath.Path) -> Iterator[None]:
    """Turns errors of Orbax and TensorStore that concern writing into one OSError."""
    try:
        yield
    except Exception as error:
        raise cannot_write(folder, "a checkpoint", _reason(_first(error))) from error


def _first(error: BaseException) -> BaseException:
    """The error that was there before barriers broke, on the process where the write failed."""
    while isinstance(error, BrokenBarrier) and error.__context__ is not None:
        error = error.__context__
    return error


def _reason(error: BaseException) -> str:
    """Returns the essential part of a message. Those of TensorStore are a page long."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    system = re.search(r"([^:]+) \[os_error_code", str(error))
    return system[1].strip() if system else first_line(error)
