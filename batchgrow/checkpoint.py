"""Checkpoints with Orbax: asynchronous, atomic, named by `examples_seen`."""

import logging
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from batchgrow.state import TrainState, digest

log = logging.getLogger(__name__)
Notes = dict[str, Any]


class Checkpoints:
    """The checkpoints of one run folder.

    Each holds the training state, a checksum of it that is verified on restoring, and notes
    (JSON). The last `keep` are kept, and the best by test accuracy.

    Args:
      workdir: the run folder; checkpoints lie in `checkpoints/EXAMPLES_SEEN`.
      keep: how many of the last ones to keep.
    """

    def __init__(self, workdir: epath.Path, *, keep: int):
        policies = ocp.checkpoint_managers
        self._digest = jax.jit(digest)
        self._folder = workdir / "checkpoints"
        self._manager = ocp.CheckpointManager(
            self._folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policies.AnyPreservationPolicy(
                    [
                        policies.LatestN(keep),
                        policies.BestN(
                            get_metric_fn=lambda metrics: metrics["test_accuracy"],
                            n=1,
                            keep_checkpoints_without_metrics=False,
                        ),
                    ]
                ),
                cleanup_tmp_directories=True,
            ),
            item_names=("state", "notes"),
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

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
        tree = {"state": state, "digest": self._digest(state)}
        metrics = None if test_accuracy is None else {"test_accuracy": test_accuracy}
        self._manager.save(
            examples_seen,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(tree), notes=ocp.args.JsonSave(notes)
            ),
            metrics=metrics,
        )

    def restore(self, like: TrainState) -> tuple[int, TrainState, Notes] | None:
        """The newest checkpoint that is whole, placed as `like` is; None if there is none.

        One that cannot be read, or whose checksum is wrong, is set aside as `EXAMPLES_SEEN.bad`
        with a warning, and the one before is taken.
        """
        tree = {"state": like, "digest": self._digest(like)}
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, tree)
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                restored = self._manager.restore(
                    step,
                    args=ocp.args.Composite(
                        state=ocp.args.StandardRestore(abstract), notes=ocp.args.JsonRestore()
                    ),
                )
                state = restored["state"]["state"]
                expected = np.asarray(restored["state"]["digest"])
                if not np.array_equal(np.asarray(self._digest(state)), expected):
                    raise ValueError("its checksum is wrong")
                return step, state, restored["notes"]
            except Exception as error:
                self._set_aside(step, error)
        return None

    def wait(self) -> None:
        """Returns when every checkpoint is on disk; raises what went wrong on the way."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for what is being written, then closes."""
        self._manager.close()

    def _set_aside(self, step: int, error: Exception) -> None:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        bad = self._folder / f"{step}.bad"
        log.warning(
            "checkpoint %s is damaged (%s); set aside as %s, taking the one before",
            self._folder / str(step),
            reason[:200],
            bad.name,
        )
        if jax.process_index() == 0:
            (self._folder / str(step)).rename(bad)
        self._manager.reload()
