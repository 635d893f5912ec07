import pathlib
import random

import pytest

from experiments import faults, ports, soak


def make_run(folder: pathlib.Path) -> pathlib.Path:
    for step in (10, 20):
        (folder / "checkpoints" / str(step) / "state").mkdir(parents=True)
        (folder / "checkpoints" / str(step) / "state" / "data").write_bytes(bytes(100))
    (folder / "checkpoints" / "20.bad").mkdir()
    (folder / "metrics.jsonl").write_text('{"examples_seen": 10, "wall_seconds": 1.5}\n')
    for name in faults.JSON_FILES:
        (folder / name).write_text("{}\n")
    faults.cache(folder).mkdir(exist_ok=True)
    (faults.cache(folder) / "program").write_bytes(bytes(100))
    return folder


def changed(folder: pathlib.Path, before: dict[str, bytes]) -> list[str]:
    now = faults.contents(folder)
    assert now.keys() == before.keys()
    return [str(pathlib.Path(p).relative_to(folder)) for p in before if now[p] != before[p]]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("kind", "where"),
    [
        ("truncated checkpoint", "run/checkpoints/20/state/data"),
        ("flipped bit in a checkpoint", "run/checkpoints/20/state/data"),
        ("cut metrics.jsonl", "run/metrics.jsonl"),
        (faults.CUT_JSON, "run/*.json"),
        (faults.DAMAGED_CACHE, "cache/program"),
    ],
)
def test_damage_hits_one_file(tmp_path: pathlib.Path, kind: str, where: str, seed: int) -> None:
    folder = make_run(tmp_path / "run")
    before = faults.contents(tmp_path)
    assert faults.damage(folder, kind, random.Random(seed))
    (path,) = changed(tmp_path, before)
    assert path.startswith(where.rpartition("*")[0]) and path.endswith(where.rpartition("*")[2])


def test_the_only_checkpoint_is_spared(tmp_path: pathlib.Path) -> None:
    folder = make_run(tmp_path)
    (folder / "checkpoints" / "10" / "state" / "data").unlink()
    (folder / "checkpoints" / "10").rename(folder / "checkpoints" / "10.bad")
    before = faults.contents(folder)
    assert not faults.damage(folder, "truncated checkpoint", random.Random(0))
    assert not changed(folder, before)


def test_rows_are_compared_without_the_clock(tmp_path: pathlib.Path) -> None:
    assert faults.rows(make_run(tmp_path)) == [{"examples_seen": 10}]


def test_a_port_is_given_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also to processes that ask before it is used."""
    monkeypatch.setattr(ports, "PORTS", [ports.free_port()])
    with pytest.raises(OSError, match="no TCP port is free"):
        ports.free_port()


@pytest.mark.slow
def test_a_short_soak_loses_nothing(tmp_path: pathlib.Path) -> None:
    result = soak.soak(1, 3, tmp_path)
    assert result["faults"] >= 5
    assert result["runs_identical"] == result["runs"] == 1
    assert result["rows_lost"] == result["rows_twice"] == result["checkpoints_lost"] == 0
    for kind, count in result["kinds"].items():
        assert count["as_expected"] == count["in_identical_runs"] == count["injected"], kind
    assert f"{result['faults']} faults; 1 of 1 runs" in soak.table(result)


def test_the_seconds_end_a_soak(tmp_path: pathlib.Path) -> None:
    result = soak.soak(5, 0, tmp_path, seconds=0)
    assert (result["runs"], result["faults"]) == (0, 0)
