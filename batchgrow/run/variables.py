"""Reads what a run has learned, whatever its model was."""

from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from batchgrow.errors import first_line
from batchgrow.run import s3
from batchgrow.run.checkpoints import check_position, digest, positions_of
from batchgrow.run.folder import FolderError, check_format, run_folder


def read_variables(place: str) -> dict[str, Any]:
    """Returns the variables that a run evaluates, `{"params": ..., **model_state}`, NumPy arrays.

    They are read without the model that they belong to. Where the run keeps an average of its
    parameters, it is the average. Nothing in the folder is changed.

    Args:
      place: a run folder, for its newest checkpoint, or `RUN/checkpoints/EXAMPLES_SEEN`.

    Raises:
      FolderError: if there is no such checkpoint, or it is damaged or of another version.
    """
    run, position = _run_and_position(run_folder(place))
    check_format(run)
    positions = positions_of(str(run))
    if not positions:
        raise FolderError(
            f"{place}: no checkpoint here; name a run folder that has one, or one of its "
            "checkpoints as RUN/checkpoints/EXAMPLES_SEEN"
        )
    position = positions[-1] if position is None else position
    check_position(run, position, positions)
    try:
        return _verified(_read(run / "checkpoints" / str(position) / "state"))
    except Exception as error:  # Damage can cause any error of Orbax and TensorStore.
        raise FolderError(
            f"{place}: checkpoint {position} is damaged ({first_line(error)})"
        ) from error


def _run_and_position(folder: epath.Path) -> tuple[epath.Path, int | None]:
    if folder.parent.name == "checkpoints" and folder.name.isdigit():
        return folder.parent.parent, int(folder.name)
    return folder, None


def _read(folder: epath.Path) -> dict[str, Any]:
    """The saved arrays as nested dictionaries."""
    if str(folder).startswith("s3://"):
        s3.teach_orbax()
    with ocp.PyTreeCheckpointer() as checkpointer:
        found: Any = checkpointer.metadata(folder)
        as_numpy = jax.tree.map(
            lambda _: ocp.RestoreArgs(restore_type=np.ndarray), found.item_metadata.tree
        )
        return checkpointer.restore(folder, restore_args=as_numpy)


def _verified(saved: dict[str, Any]) -> dict[str, Any]:
    """The variables, after a look at their checksums."""
    state, sums = saved["state"], np.asarray(saved["digest"])
    params, model_state = state["params"], state.get("model_state") or {}
    average = state.get("average") or {}
    # The checksums are in the order of `TrainState`: parameters and model state come first, the
    # average before the sums and the path.
    count = len(jax.tree.leaves((params, model_state)))
    end = len(sums) - len(jax.tree.leaves((state["sums"], state.get("path"))))
    begin = end - len(jax.tree.leaves(average))
    for tree, expected in (((params, model_state), sums[:count]), (average, sums[begin:end])):
        found = np.asarray(digest(tree)) if len(expected) else expected
        # Names such as 2 and 10 are texts in a checkpoint and have another order.
        if not np.array_equal(np.sort(found), np.sort(expected)):
            raise ValueError("the checksum of its arrays is wrong")
    return {"params": average or params, **model_state}
