"""Run folders, results and data are read, never run: see SECURITY.md."""

import json
import pathlib
import pickle
import re
import shutil
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from run_folders import make_run
from test_checkpoint import make_state, open_checkpoints, save

from batchgrow import report
from batchgrow.data.catalog import open_dataset
from batchgrow.run.folder import FolderError

MARKUP = "<script>alert(1)</script>\"'&$x^"
JSON = ("config.json", "plan.json", "task.json", "metrics.jsonl", "summary.json")


class Payload:
    """Makes a file where it is unpickled."""

    def __init__(self, path: pathlib.Path):
        self.path = path

    def __reduce__(self) -> Any:
        return pathlib.Path.touch, (self.path,)


@pytest.fixture
def touched(tmp_path: pathlib.Path) -> pathlib.Path:
    """What a payload makes; a module `malice`, which can be imported, makes it too."""
    path = tmp_path / "touched"
    (tmp_path / "malice.py").write_text(f"import pathlib\npathlib.Path({str(path)!r}).touch()\n")
    pickle.loads(pickle.dumps(Payload(path)))
    assert path.exists()  # it would be seen
    path.unlink()
    return path


def replaced(value: Any, text: str) -> Any:
    """JSON with every text replaced, except those that must be certain words."""
    if isinstance(value, dict):
        return {k: v if k == "better" else replaced(v, text) for k, v in value.items()}
    if isinstance(value, list):
        return [replaced(item, text) for item in value]
    return text if isinstance(value, str) else value


@pytest.mark.slow
def test_a_report_shows_what_a_folder_says_and_runs_nothing(tmp_path, touched, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    for seed, text in enumerate((MARKUP, "malice:run", f"$(touch {touched}); touch {touched}")):
        folder = tmp_path / "runs" / str(seed)
        make_run(folder, "hybrid", seed)
        for path in folder.glob("*.json"):
            path.write_text(json.dumps(replaced(json.loads(path.read_text()), text)))
    rows = tmp_path / "runs" / "0" / "metrics.jsonl"
    rows.write_text(rows.read_text().replace("train_loss", "train_<script>"))
    runs = [report.read_run(path) for path in report.find_runs([str(tmp_path / "runs")])]
    report.text(report.write_report(runs, str(tmp_path / "out")))
    page = (tmp_path / "out" / "index.html").read_text()
    assert "&lt;script&gt;" in page and "<script" not in page
    for path in (tmp_path / "out" / "figures").glob("*.svg"):
        assert "<script" not in path.read_text()
    assert not re.findall(r"<[^>]*\son\w+=", page)
    assert not touched.exists() and "malice" not in sys.modules


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("security") / "run"
    make_run(folder, "hybrid", 0)
    return folder


ODD = [
    *(None, True, "", "x" * 1000, "\x00\x1b[2J", [], {}, [[]], [{}], {"": None}),
    *(0, -1, 2**63, 10**400, -0.0, 1e-320, 1e308, -1e308),
]


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(JSON), st.data())
def test_odd_json_is_reported_on_or_refused_in_one_line(run_folder, name, data):
    """Any value of any file may be replaced by any other."""
    copy = run_folder.parent / "copy"
    shutil.copytree(run_folder, copy, dirs_exist_ok=True)
    lines = (run_folder / name).read_text().splitlines()
    number = data.draw(st.integers(0, len(lines) - 1))
    value = json.loads(lines[number])
    inner, key = value, None
    while True:
        keys = list(inner) if isinstance(inner, dict) else list(range(len(inner)))
        key = data.draw(st.sampled_from(keys))
        if not isinstance(inner[key], dict | list) or not inner[key] or data.draw(st.booleans()):
            break
        inner = inner[key]
    inner[key] = data.draw(st.sampled_from(ODD))
    lines[number] = json.dumps(value)
    (copy / name).write_text("\n".join(lines))
    try:
        found = report.facts([report.read_run(str(copy))])
    except ValueError as error:
        assert "\n" not in str(error) and str(copy) in str(error)
        return
    report.text(found)
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "1e999", "NaN", "9" * 5000])
@pytest.mark.parametrize("name", JSON)
def test_json_that_is_no_object_is_refused_in_one_line(run_folder, name, text):
    copy = run_folder.parent / "other"
    shutil.copytree(run_folder, copy, dirs_exist_ok=True)
    (copy / name).write_text(text + "\n{}\n" if name == "metrics.jsonl" else text)
    with pytest.raises(ValueError) as error:
        report.facts([report.read_run(str(copy))])
    assert "\n" not in str(error.value) and str(copy / name) in str(error.value)


def test_no_file_of_a_checkpoint_is_unpickled(tmp_path, touched):
    save(tmp_path / "run", {10: None})
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert len(files) > 3
    for path in files:
        path.write_bytes(pickle.dumps(Payload(touched)))
    with pytest.raises(FolderError), open_checkpoints(tmp_path / "run") as checkpoints:
        checkpoints.restore(make_state(0))
    assert not touched.exists()


def test_no_array_of_a_data_set_is_unpickled(tmp_path, touched):
    label = np.array([Payload(touched)] * 8)
    np.savez(tmp_path / "data.npz", image=np.zeros((8, 2, 2, 1), np.uint8), label=label)
    with pytest.raises(ValueError, match="dtype object"):
        open_dataset(str(tmp_path / "data.npz"), "train")
    assert not touched.exists()
