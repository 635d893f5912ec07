"""Checkpoints with Orbax: asynchronous, atomic, named by `examples_seen`."""

import contextlib
import json
import logging
import math
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from batchgrow import s3
from batchgrow.run.folder import Config, FolderError, check_config, trajectory_fields
from batchgrow.state import TrainState, digest

log = logging.getLogger(__name__)
Notes = dict[str, Any]


@dataclass(frozen=True)
class LastAndBest(ocp.checkpoint_managers.PreservationPolicy):
    """Keeps the last checkpoints, and the best one by test accuracy.

    Attributes:
      keep: how many of the last ones.
      accuracy: test accuracy by `examples_seen`; those that were not evaluated are not in it.
    """

    keep: int
    accuracy: dict[int, float] = field(default_factory=dict)

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        """For each checkpoint, oldest first, whether to keep it."""
        steps = [checkpoint.step for checkpoint in checkpoints]
        # Of several as good the last; without any accuracy that is the last of all.
        best = max(steps, key=lambda step: (self.accuracy.get(step, -math.inf), step))
        return [step in steps[-self.keep :] or step == best for step in steps]


class Checkpoints:
    """The checkpoints of one run folder.

    Each holds the training state with a checksum of every array, notes (JSON), and what it was
    trained by, all verified on restoring. The last `keep` are kept, and the best by test accuracy.

    Args:
      workdir: the run folder; checkpoints lie in `checkpoints/EXAMPLES_SEEN`.
      keep: how many of the last ones to keep.
      config: of the run, as plain nested dicts.
      plan: of the run, as `Schedule.to_dict`.
    """

    def __init__(self, workdir: epath.Path, *, keep: int, config: Config, plan: dict[str, Any]):
        self._digest = jax.jit(digest)
        self._workdir = workdir
        self._folder = workdir / "checkpoints"
        self._config = trajectory_fields(config)
        self._plan = plan
        self._policy = LastAndBest(keep)
        if str(workdir).startswith("s3://"):
            s3.teach_orbax()
        with _told(self._folder):
            self._manager = ocp.CheckpointManager(
                self._folder,
                options=ocp.CheckpointManagerOptions(
                    preservation_policy=self._policy, cleanup_tmp_directories=True
                ),
                item_names=("state", "notes"),
            )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self.close()
        except OSError as error:
            if kind is None:
                raise
            log.warning("%s", error)  # beside the error that ends the run

    def save(
        self, examples_seen: int, state: TrainState, notes: Notes, test_accuracy: float | None
    ) -> None:
        """Copies the state off the device, then writes it in the background.

        Args:
          examples_seen: the position; a checkpoint that is already there is left alone.
          state: as on the devices; every process passes its own copy.
          notes: JSON to restore beside it.
          test_accuracy: measured at this position, or None.

        Raises:
          OSError: if this or an earlier checkpoint could not be written.
        """
        if examples_seen in self._manager.all_steps():
            return
        if test_accuracy is not None:
            self._policy.accuracy[examples_seen] = test_accuracy
        accuracy = {str(k): v for k, v in self._policy.accuracy.items()}
        body = {"notes": notes, "config": self._config, "plan": self._plan, "accuracy": accuracy}
        text = json.dumps(body)
        sealed = {"text": text, "crc32": zlib.crc32(text.encode())}
        tree = {"state": state, "digest": self._digest(state)}
        with _told(self._folder):
            self._manager.save(
                examples_seen,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(tree), notes=ocp.args.JsonSave(sealed)
                ),
            )

    def restore(self, like: TrainState) -> tuple[int, TrainState, Notes] | None:
        """The newest checkpoint that is whole, placed as `like` is; None if there is none at all.

        Newer ones that are damaged are set aside as `EXAMPLES_SEEN.bad`, with a warning.

        Raises:
          FolderError: if none of them is whole (all are left where they are), or if they are of
            another config or plan.
        """
        damaged: dict[int, str] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            whole, reason = None, "another process cannot read it"
            try:
                whole = self._read(step, like)
            except Exception as error:  # whatever damage makes of Orbax, TensorStore and JSON
                reason = _reason(error)
            if not _all_agree(whole is not None) or whole is None:
                damaged[step] = reason
                continue
            state, body = whole
            check_config(self._workdir, body["config"], self._config, override=False)
            self._check_plan(body["plan"])
            for bad, reason in damaged.items():
                self._set_aside(bad, reason)
            self._policy.accuracy.update({int(k): v for k, v in body["accuracy"].items()})
            return step, state, body["notes"]
        if damaged:
            raise FolderError(
                f"{self._folder}: no checkpoint can be read (the newest, {max(damaged)}: "
                f"{damaged[max(damaged)]}); copy one back from elsewhere, or take another workdir "
                "to start over; nothing was changed here"
            )
        return None

    def wait(self) -> None:
        """Returns when every checkpoint is on disk.

        Raises:
          OSError: as `save`.
        """
        with _told(self._folder):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for what is being written, then closes.

        Raises:
          OSError: as `save`.
        """
        with _told(self._folder):
            self._manager.close()

    def _read(self, step: int, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
        tree = {"state": like, "digest": self._digest(like)}
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, tree)
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(abstract), notes=ocp.args.JsonRestore()
            ),
        )
        sealed, state = restored["notes"], restored["state"]["state"]
        if zlib.crc32(sealed["text"].encode()) != sealed["crc32"]:
            raise ValueError("the checksum of its notes is wrong")
        expected = np.asarray(restored["state"]["digest"])
        if not np.array_equal(np.asarray(self._digest(state)), expected):
            raise ValueError("the checksum of its arrays is wrong")
        return state, json.loads(sealed["text"])

    def _check_plan(self, before: Mapping[str, Any]) -> None:
        """The same config makes another plan only if the code that makes plans has changed."""

        def numbers(plan: Mapping[str, Any]) -> list[float]:
            return [value for phase in plan["phases"] for value in phase.values()]

        old, new = numbers(before), numbers(self._plan)
        # Another machine's powers and cosines may differ in the last bit.
        if len(old) == len(new) and all(map(math.isclose, old, new)):
            return
        raise FolderError(
            f"{self._folder} was trained by another plan, although by the same config "
            f"({before['num_updates']} updates in {len(before['phases'])} phases, now "
            f"{self._plan['num_updates']} in {len(self._plan['phases'])}); go on with the version "
            "of batchgrow that made it, or take another workdir"
        )

    def _set_aside(self, step: int, reason: str) -> None:
        places = (f"{step}.bad{n or ''}" for n in range(1000))
        bad = next(place for place in places if not (self._folder / place).exists())
        log.warning(
            "checkpoint %s is damaged (%s); set aside as %s, going on from the one before",
            self._folder / str(step),
            reason,
            bad,
        )
        if jax.process_index() == 0:
            (self._folder / str(step)).rename(self._folder / bad)
        multihost_utils.sync_global_devices(f"set aside {step}")
        self._manager.reload()


def last_position(workdir: str) -> int:
    """Examples seen at the newest checkpoint of a run folder, whole or damaged; 0 without any.

    A folder that cannot be read has none: `claim` will say what is wrong with it.
    """
    try:
        names = [path.name for path in (epath.Path(workdir) / "checkpoints").iterdir()]
    except Exception:  # an object store's client raises what it likes
        return 0
    return max((int(name) for name in names if name.isdigit()), default=0)


@contextlib.contextmanager
def _told(folder: epath.Path) -> Iterator[None]:
    """Turns what Orbax and TensorStore raise where they cannot write into one OSError."""
    try:
        yield
    except Exception as error:
        raise OSError(
            f"{folder}: a checkpoint could not be written ({_reason(error)}); free space and start "
            "the same command again; it goes on from the last checkpoint that is whole"
        ) from error


def _reason(error: Exception) -> str:
    """The heart of a message; TensorStore's go on for a page."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = str(error).strip() or type(error).__name__
    system = re.search(r"([^:]+) \[os_error_code", text)
    return system[1].strip() if system else text.splitlines()[0][:120]


def _all_agree(mine: bool) -> bool:
    """Whether it is true on every process."""
    if jax.process_count() == 1:
        return mine
    return bool(multihost_utils.process_allgather(np.array(mine)).all())
