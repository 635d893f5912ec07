import json
import os
import pathlib
import resource
import subprocess
import sys

import pytest
from etils import epath

from batchgrow.run.checkpoints import positions_of
from batchgrow.run.folder import FolderError, check_config, claim, read_json, write_json

CONFIG = {"seed": 0, "recipe": {"boundaries": [1.0, 2.0]}, "run": {"num_devices": 1}}
HOLD = """
import sys, time
from batchgrow.run.checkpoints import positions_of
from batchgrow.run.folder import claim
with claim(sys.argv[1], is_writer=True):
    print("held", flush=True)
    time.sleep(120)
"""


def test_a_second_run_is_refused_until_the_first_is_gone(tmp_path: pathlib.Path) -> None:
    workdir = str(tmp_path / "run")
    first = subprocess.Popen([sys.executable, "-c", HOLD, workdir], stdout=subprocess.PIPE)
    try:
        assert first.stdout is not None and first.stdout.readline() == b"held\n"
        with pytest.raises(FolderError, match="another run is using it"):
            with claim(workdir, is_writer=True):
                pass
    finally:
        first.kill()  # even so, the folder is free again
        first.communicate()
    with claim(workdir, is_writer=True) as folder:
        assert folder.is_dir()
    with claim(workdir, is_writer=True):
        pass


def test_only_the_writer_needs_to_write(tmp_path: pathlib.Path) -> None:
    with claim(str(tmp_path / "new"), is_writer=False):
        assert not (tmp_path / "new").exists()


def test_a_workdir_is_needed() -> None:
    with pytest.raises(FolderError, match="workdir is empty"):
        with claim("", is_writer=True):
            pass
    with pytest.raises(FolderError, match="no such user"):
        with claim("~nobody-here/run", is_writer=True):
            pass


def test_the_home_folder_is_expanded(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with claim("~/run", is_writer=True) as folder:
        assert os.fspath(folder) == str(tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "30").mkdir(parents=True)
    assert positions_of("~/run") == [30]


def test_a_link_in_place_of_the_lock_does_not_empty_its_target(tmp_path: pathlib.Path) -> None:
    (tmp_path / "precious").write_text("text")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to(tmp_path / "precious")
    with pytest.raises(FolderError, match=r"\.lock is a symbolic link; remove it"):
        with claim(str(tmp_path / "run"), is_writer=True):
            pass
    assert (tmp_path / "precious").read_text() == "text"


@pytest.mark.parametrize("is_writer", [True, False])
def test_a_folder_of_another_version_is_refused(tmp_path: pathlib.Path, is_writer: bool) -> None:
    def refused(said: str) -> None:
        with pytest.raises(FolderError, match=said):
            with claim(str(tmp_path), is_writer=is_writer):
                pass

    (tmp_path / "config.json").write_text("{}")
    refused("holds a run of batchgrow 0.1")
    (tmp_path / "task.json").write_text('{"format": 3}')
    refused("another version of batchgrow .format 3, this version has format 2")
    (tmp_path / "task.json").write_text('{"format": 2}')
    with claim(str(tmp_path), is_writer=is_writer):
        pass


@pytest.mark.parametrize("place", ["below a file", "read-only"])
def test_a_folder_that_cannot_be_written(tmp_path: pathlib.Path, place: str) -> None:
    complaint = r"cannot be written \(.*\); choose another folder"
    if place == "below a file":
        complaint = "/file is a file, not a folder; choose another workdir"
        (tmp_path / "file").write_text("")
        workdir = tmp_path / "file" / "run"
    elif os.geteuid() == 0:
        workdir = pathlib.Path("/proc/self")  # permissions do not stop root; the kernel does
    else:
        workdir = tmp_path / "mine"
        workdir.mkdir(mode=0o500)
    with pytest.raises(FolderError, match=complaint):
        with claim(str(workdir), is_writer=True):
            pass


def test_the_same_config_passes(tmp_path: pathlib.Path) -> None:
    now = CONFIG | {"recipe": {"boundaries": (1.0, 2.0)}}  # as a ConfigDict has it
    check_config(epath.Path(tmp_path), CONFIG, now, override=False)


@pytest.mark.parametrize("override", [False, True])
def test_a_changed_trajectory_is_always_refused(tmp_path: pathlib.Path, override: bool) -> None:
    now = {**CONFIG, "seed": 1, "new": 2, "run": {"num_devices": 8}}
    with pytest.raises(FolderError, match=r"\(new: None -> 2, seed: 0 -> 1\); it changes the traj"):
        check_config(epath.Path(tmp_path), CONFIG, now, override=override)


@pytest.mark.parametrize("before, now", [("workers", "resident"), ("streamed", "workers")])
def test_images_that_workers_crop_are_other_images(
    tmp_path: pathlib.Path, before: str, now: str
) -> None:
    old, new = ({**CONFIG, "run": {"input": value}} for value in (before, now))
    with pytest.raises(FolderError, match=f"run.input: {before} -> {now}.*changes the trajectory"):
        check_config(epath.Path(tmp_path), old, new, override=True)


def test_a_field_that_the_folder_lacks_may_have_its_default(tmp_path: pathlib.Path) -> None:
    now = {**CONFIG, "new": {"rate": 0.5, "steps": (1,)}, "run": {"num_devices": 1, "fast": True}}
    defaults = {"new.rate": 0.5, "new.steps": (1,), "run.fast": True, "seed": 1, "gone": 3}
    check_config(epath.Path(tmp_path), CONFIG, now, override=False, defaults=defaults)
    for missing, said in {"new.rate": "new.rate: None -> 0.5", "run.fast": "None -> True"}.items():
        fewer = {name: value for name, value in defaults.items() if name != missing}
        with pytest.raises(FolderError, match=said):
            check_config(epath.Path(tmp_path), CONFIG, now, override=False, defaults=fewer)
    now["new"]["rate"] = 0.7
    with pytest.raises(FolderError, match=r"\(new.rate: 0.5 -> 0.7\); it changes the trajectory"):
        check_config(epath.Path(tmp_path), CONFIG, now, override=False, defaults=defaults)


def test_how_it_runs_may_change_if_told_so(tmp_path: pathlib.Path) -> None:
    now = {**CONFIG, "run": {"num_devices": 8}}
    with pytest.raises(FolderError, match=r"num_devices: 1 -> 8.* add --override_config"):
        check_config(epath.Path(tmp_path), CONFIG, now, override=False)
    check_config(epath.Path(tmp_path), CONFIG, now, override=True)


def test_a_full_disk_leaves_the_old_json(tmp_path: pathlib.Path) -> None:
    path = epath.Path(tmp_path / "x.json")
    write_json(path, CONFIG)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, before[1]))
    try:
        with pytest.raises(OSError):
            write_json(path, {"x": "y" * 100})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert read_json(path) == CONFIG


def test_json_that_is_missing_or_cut_is_none(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = epath.Path(tmp_path / "x.json")
    assert read_json(path) is None and not caplog.text
    text = json.dumps(CONFIG)
    for size in range(len(text)):
        path.write_text(text[:size])
        assert read_json(path) is None
    assert "x.json is damaged" in caplog.text
    for content in (b"\xff", b"[]", b"[" * 100_000):
        path.write_bytes(content)
        assert read_json(path) is None


def test_a_folder_in_place_of_a_file(tmp_path: pathlib.Path) -> None:
    path = epath.Path(tmp_path / "config.json")
    (tmp_path / "config.json.new").mkdir()
    with pytest.raises(OSError, match="config.json could not be written .*new is a folder; remove"):
        write_json(path, CONFIG)
    path.mkdir()
    with pytest.raises(FolderError, match=r"config.json cannot be read \(Is a directory\)"):
        read_json(path)
