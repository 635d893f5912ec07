import json
import math
import os
import pathlib
import random
import shutil
import subprocess
import sys
import time
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from hypothesis import given, settings
from hypothesis import strategies as st

from batchgrow.run.checkpoints import Checkpoints, digest
from batchgrow.run.folder import FolderError
from batchgrow.tasks import Metric

CONFIG = {"seed": 0, "recipe": {"learning_rate": 0.1}, "run": {"num_devices": 1}}
ACCURACY = Metric("accuracy", "higher", percent=True)
State = dict[str, Any]


def make_state(seed: int) -> State:
    rng = np.random.default_rng(seed)
    kernel, bias = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((30, 17), 17))
    return {
        "params": {"kernel": kernel, "bias": bias, "half": kernel.astype(jnp.bfloat16)},
        "count": jnp.int32(seed),
        "mask": kernel > 0,
    }


def open_checkpoints(
    folder: pathlib.Path,
    keep: int = 2,
    config: dict = CONFIG,
    metric: Metric = ACCURACY,
    **options: Any,
) -> Checkpoints:
    return Checkpoints(epath.Path(folder), keep=keep, metric=metric, config=config, **options)


def notes(step: int) -> dict:
    return {"log": {"num_rows": step, "last": {"train_loss": 1 / 3}}}


def save(folder: pathlib.Path, accuracies: dict[int, float | None], keep: int = 2) -> None:
    with open_checkpoints(folder, keep) as checkpoints:
        checkpoints.restore(make_state(0))
        for step, accuracy in accuracies.items():
            checkpoints.save(step, make_state(step), notes(step), accuracy)


def steps(folder: pathlib.Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def assert_whole(restored: tuple[int, State, dict] | None, allowed: tuple[int, ...]) -> None:
    assert restored is not None
    step, state, found = restored
    assert step in allowed
    assert found == notes(step)
    jax.tree.map(np.testing.assert_array_equal, state, make_state(step))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("saved")
    save(folder, {10: 0.9, 20: None, 30: 0.5})
    return folder


def test_restores_the_newest_bit_for_bit(saved: pathlib.Path) -> None:
    with open_checkpoints(saved) as checkpoints:
        assert_whole(checkpoints.restore(make_state(0)), (30,))


def test_a_new_folder_has_none(tmp_path: pathlib.Path) -> None:
    with open_checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore(make_state(0)) is None


def test_only_the_owner_removes_an_unfinished_save(tmp_path: pathlib.Path) -> None:
    """For a reader it may be the save of a run that is still training."""
    save(tmp_path, {10: 0.5})
    unfinished = "20.orbax-checkpoint-tmp-0"
    (tmp_path / "checkpoints" / unfinished).mkdir()
    with open_checkpoints(tmp_path) as checkpoints:
        assert checkpoints.positions() == [10]
    assert steps(tmp_path) == ["10", unfinished]
    with open_checkpoints(tmp_path, is_own=True):
        for _ in range(300):  # Orbax removes it in the background.
            if steps(tmp_path) == ["10"]:
                break
            time.sleep(0.1)
    assert steps(tmp_path) == ["10"]


def test_the_last_and_the_best_are_kept_through_restarts(tmp_path: pathlib.Path) -> None:
    save(tmp_path, {10: 0.5, 20: 0.9, 30: None, 40: 0.6})
    assert steps(tmp_path) == ["20", "30", "40"]
    # Another process has to know the scores of those before it.
    save(tmp_path, {50: None, 60: 0.7})
    assert steps(tmp_path) == ["20", "50", "60"]
    save(tmp_path, {70: 0.9, 80: None, 90: None})  # as good, and later
    assert steps(tmp_path) == ["70", "80", "90"]


def test_a_checkpoint_that_is_there_is_left_alone(tmp_path: pathlib.Path) -> None:
    save(tmp_path, {10: None})
    with open_checkpoints(tmp_path) as checkpoints:
        checkpoints.save(10, make_state(11), notes(11), None)
        checkpoints.wait()
        assert_whole(checkpoints.restore(make_state(0)), (10,))


def test_no_damage_to_a_file_goes_unnoticed(saved: pathlib.Path, tmp_path: pathlib.Path) -> None:
    rng = random.Random(0)
    newest = sorted(p for p in (saved / "checkpoints" / "30").rglob("*") if p.is_file())
    fell_back = 0
    for number, path in enumerate(newest + rng.choices(newest, k=10)):
        folder = tmp_path / str(number)
        shutil.copytree(saved, folder)
        target = folder / path.relative_to(saved)
        content = bytearray(target.read_bytes())
        match rng.choice(("flip", "flip", "truncate", "remove")):
            case "flip":
                content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
                target.write_bytes(content)
            case "truncate":
                target.write_bytes(content[: rng.randrange(len(content))])
            case "remove":
                target.unlink()
        with open_checkpoints(folder) as checkpoints:
            restored = checkpoints.restore(make_state(0))
            assert_whole(restored, (30, 20))
            checkpoints.save(40, make_state(40), notes(40), None)  # and the run goes on
        if restored[0] == 20:
            fell_back += 1
            assert "30.bad" in steps(folder)
        shutil.rmtree(folder)
    assert fell_back >= 5


def test_a_damaged_one_is_set_aside_with_a_word(
    saved: pathlib.Path, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    for number in ("", "1"):  # twice at the same place
        (tmp_path / "checkpoints" / "30" / "notes" / "metadata").write_text("{")
        with open_checkpoints(tmp_path) as checkpoints:
            assert_whole(checkpoints.restore(make_state(0)), (20,))
            checkpoints.save(30, make_state(30), notes(30), None)
        assert f"30.bad{number}" in steps(tmp_path)
    assert "checkpoints/30 is damaged" in caplog.text
    assert "set aside as 30.bad, continuing from the one before" in caplog.text


def test_when_none_is_whole_nothing_is_touched(saved: pathlib.Path, tmp_path: pathlib.Path) -> None:
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    for step in (10, 20, 30):
        (tmp_path / "checkpoints" / str(step) / "state" / "_METADATA").write_text("")
    for _ in range(2):
        with open_checkpoints(tmp_path) as checkpoints:
            with pytest.raises(FolderError, match=r"no checkpoint can be read \(the newest, 30: "):
                checkpoints.restore(make_state(0))
        assert steps(tmp_path) == ["10", "20", "30"]


def test_the_best_is_the_lowest_where_lower_is_better(tmp_path: pathlib.Path) -> None:
    loss = Metric("loss", "lower")
    with open_checkpoints(tmp_path, keep=1, metric=loss) as checkpoints:
        for step, score in {10: 0.5, 20: 0.1, 30: math.nan, 40: 0.6, 50: None}.items():
            checkpoints.save(step, make_state(step), notes(step), score)
    assert steps(tmp_path) == ["20", "50"]


def test_the_position_is_inside(saved: pathlib.Path, tmp_path: pathlib.Path, caplog: Any) -> None:
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    folder = tmp_path / "checkpoints"
    shutil.copytree(folder / "20", folder / "999")
    (folder / "30").rename(folder / "35")
    with open_checkpoints(tmp_path) as checkpoints:
        assert_whole(checkpoints.restore(make_state(0)), (20,))
    assert steps(tmp_path) == ["10", "20", "35.bad", "999.bad"]
    assert "999 is damaged (it was saved at 20 examples)" in caplog.text


def test_a_checkpoint_holds_no_more_scores_than_checkpoints(tmp_path: pathlib.Path) -> None:
    save(tmp_path, {step: 1 / step for step in range(1, 9)})
    text = (tmp_path / "checkpoints" / "8" / "notes" / "metadata").read_text()
    assert set(json.loads(json.loads(text)["text"])["scores"]) == {"1", "6", "7", "8"}


def test_another_config_is_refused(saved: pathlib.Path) -> None:
    other = CONFIG | {"recipe": {"learning_rate": 0.2}}
    with open_checkpoints(saved, config=other) as checkpoints:
        with pytest.raises(FolderError, match=r"recipe.learning_rate: 0.1 -> 0.2"):
            checkpoints.restore(make_state(0))


@pytest.mark.parametrize("number", [None, 3])
def test_another_format_is_refused_and_not_called_damaged(
    saved: pathlib.Path, tmp_path: pathlib.Path, number: int | None
) -> None:
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    for step in (10, 20, 30):
        path = tmp_path / "checkpoints" / str(step) / "notes" / "metadata"
        body = json.loads(json.loads(path.read_text())["text"])
        text = json.dumps(body | {"format": number})
        path.write_text(json.dumps({"text": text, "crc32": zlib.crc32(text.encode())}))
    with open_checkpoints(tmp_path) as checkpoints:
        with pytest.raises(FolderError, match=rf"another version .*\(format {number}, this"):
            checkpoints.restore(make_state(0))
    assert steps(tmp_path) == ["10", "20", "30"]


def test_how_it_runs_may_differ(saved: pathlib.Path) -> None:
    config = CONFIG | {"run": {"num_devices": 8}}
    with open_checkpoints(saved, config=config) as checkpoints:
        assert_whole(checkpoints.restore(make_state(0)), (30,))


def test_a_file_in_place_of_the_folder(tmp_path: pathlib.Path) -> None:
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(FolderError, match="checkpoints is a file; remove it"):
        open_checkpoints(tmp_path)


def test_a_folder_that_was_removed_is_not_called_full(tmp_path: pathlib.Path) -> None:
    with pytest.raises(OSError, match="the folder was removed during the run; put it back"):
        with open_checkpoints(tmp_path / "run") as checkpoints:
            shutil.rmtree(tmp_path / "run")
            (tmp_path / "run").symlink_to(tmp_path / "gone" / "run")  # Orbax cannot create it again
            checkpoints.save(10, make_state(10), notes(10), None)
            checkpoints.wait()


# Saves to a folder that is gone and cannot be created again.
GONE = """
import pathlib, shutil, sys
sys.path.insert(0, sys.argv[2])
from test_checkpoint import make_state, notes, open_checkpoints
run = pathlib.Path(sys.argv[1])
with open_checkpoints(run) as checkpoints:
    shutil.rmtree(run)
    run.symlink_to(run.parent / "gone" / "run")
    checkpoints.save(10, make_state(10), notes(10), None)
    checkpoints.wait()
"""


def test_no_thread_outlives_a_failed_save(tmp_path: pathlib.Path) -> None:
    """Threads of Orbax waited 300 s for a folder that nobody made."""
    here = pathlib.Path(__file__).parent
    command = [sys.executable, "-c", GONE, f"{tmp_path}/run", str(here)]
    done = subprocess.run(command, cwd=here.parent, capture_output=True, text=True, timeout=200)
    assert done.returncode == 1
    assert "the folder was removed during the run; put it back" in done.stderr


# From a folder to the bytes that a file takes there, and no more.
FULL = {"0": 0, "150": 150, "700": 700, "1500": 1500, "divided": 0}
# Saves a checkpoint for each size and prints the error. In the last, the loop divides by zero.
SAVES = """
import json, pathlib, resource, sys
sys.path.insert(0, sys.argv[2])
from test_checkpoint import FULL, make_state, notes, open_checkpoints
raised = {}
for name, size in FULL.items():
    try:
        with open_checkpoints(pathlib.Path(sys.argv[1], name)) as checkpoints:
            checkpoints.restore(make_state(0))
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
            checkpoints.save(40, make_state(40), notes(40), None)
            name == "divided" and 1 / 0
            checkpoints.wait()
    except (OSError, ZeroDivisionError) as error:
        raised[name] = str(error)
print(json.dumps(raised))
"""


@pytest.fixture(scope="module")
def full(saved: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The folder of these folders, and what was raised in a process that is over."""
    folder, here = tmp_path_factory.mktemp("full"), pathlib.Path(__file__).parent
    for name in FULL:
        shutil.copytree(saved, folder / name)
    command = [sys.executable, "-c", SAVES, str(folder), str(here)]
    done = subprocess.run(command, cwd=here.parent, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout)


@pytest.mark.parametrize("name", [name for name in FULL if name != "divided"])
def test_a_full_disk_is_told_and_leaves_the_others(full: Any, name: str) -> None:
    folder, raised = full
    assert "could not be written (File too large); free space" in raised[name]
    with open_checkpoints(folder / name) as checkpoints:
        assert_whole(checkpoints.restore(make_state(0)), (30,))
        checkpoints.save(40, make_state(40), notes(40), None)
    # 10 is the best one; what the full disk had left behind is gone.
    assert steps(folder / name) == ["10", "30", "40"]


def test_a_failed_write_does_not_hide_what_ended_the_run(full: Any) -> None:
    assert full[1]["divided"] == "division by zero"


def test_what_a_killed_write_left_is_no_checkpoint(tmp_path: pathlib.Path) -> None:
    save(tmp_path, {10: None, 20: None})
    folder = tmp_path / "checkpoints"
    os.rename(folder / "20", folder / "20.orbax-checkpoint-tmp")
    with open_checkpoints(tmp_path) as checkpoints:
        assert_whole(checkpoints.restore(make_state(0)), (10,))
        checkpoints.save(20, make_state(20), notes(20), None)
    assert steps(tmp_path) == ["10", "20"]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.sampled_from(["kernel", "half"]), st.integers(0, 30 * 17 - 1), st.integers(0, 15))
def test_the_checksum_sees_every_flipped_bit(name: str, word: int, bit: int) -> None:
    params = make_state(1)["params"]
    array = np.array(params[name])
    array.view(np.uint16).reshape(-1)[word] ^= np.uint16(1 << bit)
    changed = np.asarray(digest(params)) != np.asarray(digest({**params, name: array}))
    assert changed.sum() == 1
