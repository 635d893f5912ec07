"""Machines that are not here: their names, what is read from programs, and what is told."""

import hashlib
import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from types import SimpleNamespace

import jax
import pytest
from tiny import tiny_experiment

from batchgrow.devices import peak_flops
from batchgrow.engine import Engine
from batchgrow.layout import make_mesh
from batchgrow.targets import forecast, program
from batchgrow.targets.compile import Compiled, Compiler, compiler_versions
from batchgrow.targets.machines import GENERATIONS, parse
from configs import cifar10, digits
from experiments import forecasts

GIB = 2**30
ROOT = pathlib.Path(__file__).parents[1]
RESULTS = ROOT / "experiments" / "results" / "forecasts"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v9:2x2", "unknown generation 'v9'; choose v2, "),
        ("v5e", "after the colon stand chips, as in v5e:16x16"),
        ("v5e:4", "after the colon stand chips"),
        ("v5e:0x4", "after the colon stand chips"),
        ("v5e:2x2x2x2", "after the colon stand chips"),
        ("h100:2x2", "after the colon stand the number of GPUs, as in h100:8"),
    ],
)
def test_wrong_names(name, message):
    with pytest.raises(ValueError, match=f"--target={name}: {message}") as raised:
        parse(name)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "devices"),
    [("v2:8x16", 256), ("v2:2x2x1", 8), ("v5e:16x16", 256), ("tpu7x:2x2x1", 8), ("h100:16", 16)],
)
def test_number_of_devices(name, devices):
    """As libtpu's topologies have them."""
    assert parse(name).num_devices == devices


def test_a_batch_that_cannot_be_laid_out_is_told_before_anything_is_compiled(monkeypatch):
    monkeypatch.setattr(forecast, "check_compiler", lambda target: None)
    with pytest.raises(ValueError, match="batch size 128 cannot be laid out on 256 devices"):
        forecast.forecast(cifar10.get_config("hybrid"), parse("v5e:16x16"), 50_000)


def test_names():
    assert parse("v5p:4x4x8").topology == (4, 4, 8)
    assert parse("h100:8").topology == (8,)
    assert parse("v2:8x16").generation.device_kind == "TPU v2"


@pytest.mark.parametrize("name", GENERATIONS)
def test_every_generation_has_a_peak_and_a_source(name):
    generation = GENERATIONS[name]
    assert (peak_flops(generation.device_kind, "bfloat16") or 0) > 1e12
    assert generation.memory > 7 * GIB and generation.source
    assert generation.platform in ("tpu", "cuda")


def test_v5p_is_not_v5e():
    """One kind's name begins with the other's."""
    assert peak_flops("TPU v5 lite", "bfloat16") == 197e12
    assert peak_flops("TPU v5", "bfloat16") == 459e12


PROGRAM = """\
HloModule jit_updates, is_scheduled=true

%add (x: f32[], y: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%x, %y), backend_config={"estimated_cycles":"9000"}
}

%fused (p: bf16[8,128]) -> f32[8,128] {
  %inner = f32[8,128]{1,0:T(8,128)} convert(%p), backend_config={"estimated_cycles":"9000"}
}

%passes (t: (s32[])) -> (s32[]) {
  %pass = (s32[]) fusion(%t), kind=kLoop, calls=%fused, backend_config={"estimated_cycles":"5"}
}

%more (t: (s32[])) -> pred[] {
  ROOT %lt = pred[] compare(%t, %n), direction=LT, backend_config={"estimated_cycles":"1"}
}

%update (t: (s32[])) -> (s32[]) {
  %scan = (s32[]) while(%t), condition=%more, body=%passes, \
backend_config={"known_trip_count":{"n":"4"},"estimated_cycles":"0"}
  %ar = (bf16[2,3]{1,0:T(8,128)(2,1)}, f32[5]{0}) all-reduce(%g, %h), to_apply=%add, \
backend_config={"estimated_cycles":"10"}
}

ENTRY %main (a: u8[6,6]) -> (s32[]) {
  %copy.1 = u8[6,6]{0,1} copy(%a), backend_config={"estimated_cycles":"100"}
  %loop = (s32[]) while(%copy.1), condition=%more, body=%update
}
"""


def test_cycles_count_loops_and_no_fused_parts():
    """Once: the copy. Each update: 4 passes of 5 and 1, the all-reduce, and the outer condition."""
    assert program.cycles(PROGRAM) == (100, 4 * (5 + 1) + 10 + 1)


def test_a_dispatch_of_one_update_is_all_its_own():
    text = PROGRAM.replace("  %loop = (s32[]) while(%copy.1), condition=%more, body=%update\n", "")
    assert program.cycles(text) == (0, 100)


def test_trips_are_read_from_the_condition_too():
    """As the TPU compiler leaves them; the number of updates of a dispatch is no constant."""
    text = PROGRAM.replace('"known_trip_count":{"n":"4"},', "").replace(
        "condition=%more, body=%passes", "condition=%four, body=%passes"
    )
    condition = "%four (t: (s32[])) -> pred[] {\n  %n = s32[]{:T(128)} constant(4)\n}\n\nENTRY"
    assert program.cycles(text.replace("ENTRY", condition)) == (100, 4 * 5 + 10 + 1)


def test_collectives_of_an_update():
    assert program.collectives(PROGRAM) == [
        {"opcode": "all-reduce", "dtype": "bf16+f32", "count": 1, "bytes": 2 * 6 + 4 * 5}
    ]


def test_kernels_are_counted_in_all_their_trips():
    text = PROGRAM.replace(
        "  %ar = ",
        '  %conv = (bf16[2]) custom-call(%a), custom_call_target="__cudnn$convForward"\n'
        "  %dot = bf16[2] fusion(%a), kind=kCustom, calls=%fused, backend_config="
        '{"fusion_backend_config":{"kind":"__triton_gemm"}}\n'
        "  %ar = ",
    )
    found = program.kernels(text)
    assert found == {"Loop fusion": 4, "__cudnn$convForward": 1, "__triton_gemm": 1}


@pytest.mark.parametrize(
    ("shape", "num_bytes"),
    [("pred[3]", 3), ("s4[3]{0}", 2), ("f8e4m3fn[2,2]", 4), ("f32[]", 4), ("(u8[2], c64[])", 10)],
)
def test_bytes_of_a_shape(shape, num_bytes):
    text = PROGRAM.replace("u8[6,6]{0,1} copy", f"{shape} copy")
    copy = next(x for x in program.instructions(text) if x.name == "copy.1")
    assert copy.num_bytes == num_bytes


class FakeLowered:
    """A lowered program whose compiler counts its calls."""

    def __init__(self, refusal: str = ""):
        self.calls, self._refusal = 0, refusal

    def as_text(self) -> str:
        return f"module {self._refusal}"

    def compile(self):
        self.calls += 1
        if self._refusal:
            raise jax.errors.JaxRuntimeError(self._refusal)
        sizes = {"argument": 4, "output": 2, "alias": 1, "temp": 8, "generated_code": 16}
        analysis = SimpleNamespace(**{f"{k}_size_in_bytes": v for k, v in sizes.items()})
        return SimpleNamespace(memory_analysis=lambda: analysis, as_text=lambda: PROGRAM)


def test_the_compiler_remembers(tmp_path):
    lowered = FakeLowered()
    found = [Compiler(parse("v5e:2x2"), tmp_path)(lowered) for _ in range(2)]
    assert lowered.calls == 1
    assert found[1].text == PROGRAM and found[1].memory == found[0].memory
    Compiler(parse("v6e:2x2"), tmp_path)(lowered)
    assert lowered.calls == 2


def test_flags_of_the_compiler_are_part_of_the_key(tmp_path, monkeypatch):
    """Where none is set, the key is what it was before there were flags in it."""
    lowered, target = FakeLowered(), parse("v5e:2x2")
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "")
    Compiler(target, tmp_path)(lowered)
    about = [target.name, compiler_versions(target), lowered.as_text()]
    key = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:32]
    assert [path.name for path in tmp_path.iterdir()] == [f"{key}.json.gz"]
    for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS"):
        monkeypatch.setenv(name, "--xla_some_flag=true")
        Compiler(target, tmp_path)(lowered)
    assert lowered.calls == 3


def test_what_cannot_be_kept_is_returned(tmp_path, caplog):
    (tmp_path / "file").touch()
    found = Compiler(parse("v5e:2x2"), tmp_path / "file" / "cache")(FakeLowered())
    assert found.text == PROGRAM
    (record,) = caplog.records
    assert "what the compiler said is not kept: " in record.getMessage()


def test_a_refusal_is_remembered(tmp_path):
    lowered = FakeLowered("RESOURCE_EXHAUSTED: Used 20G of 15.75G hbm")
    for _ in range(2):
        with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED"):
            Compiler(parse("v5e:2x2"), tmp_path)(lowered)
    assert lowered.calls == 1


def test_other_faults_are_not_remembered(tmp_path):
    lowered = FakeLowered("INTERNAL: a fault")
    for _ in range(2):
        with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
            Compiler(parse("v5e:2x2"), tmp_path)(lowered)
    assert lowered.calls == 2


def test_the_engine_takes_a_limit_and_a_compiler():
    """1 GiB for each example of a pass, and 45 of 50 GiB to be used: the third layout fits."""
    needs = iter([128, 32])  # the second is not tried

    def compiled(_):
        return Compiled(
            memory=dict.fromkeys(("argument", "output", "alias", "generated_code"), 0)
            | {"temp": next(needs) * GIB}
        )

    with Engine(tiny_experiment(), make_mesh(1), 50 * GIB, compiled) as engine:
        fitted = engine.compiler.fit(128)
    assert fitted.layout.num_microbatches == 4
    assert [(x.num_microbatches, need) for x, need in fitted.too_large] == [(1, 128 * GIB)]


UPDATE = {
    "batch_size": 128,
    "num_devices": 4,
    "memory_limit": 16 * GIB,
    "num_microbatches": 2,
    "microbatch_size": 16,
    "max_updates": 16,
    "memory_needed": 12 * GIB,
    "too_large": [{"num_microbatches": 1, "microbatch_size": 32, "needs": 20 * GIB}],
    "flops": 2e12,
    "collectives": [{"opcode": "all-reduce", "dtype": "f32", "count": 3, "bytes": 3 * 2**20}],
    "cycles": 1.5e6,
    "seconds": 0.001,
    "share_of_peak": 0.25,
    "examples_per_second": 128_000.0,
    "needed_per_host": 128_000.0,
    "compile_seconds": 1.0,
}
FOUND = {
    "target": "v5e:2x2",
    "updates": {128: UPDATE, 256: {**UPDATE, "batch_size": 256, "too_large": []}},
    "segments": [
        {"batch_size": 128, "num_updates": 3_600_000, "seconds": 3600.0},
        {"batch_size": 256, "num_updates": 1_800_000, "seconds": 1800.0},
    ],
    "seconds": 5400.0,
    "decay_seconds": 7200.0,
    "versions": {"libtpu": "0.0.42"},
}


def test_the_table_of_a_forecast():
    head, first, second = forecast.table(FOUND).splitlines()
    assert head.split()[:3] == ["segment", "batch", "layout"]
    assert first.split()[1:5] == ["128", "2", "x", "16"]
    assert "12.00" in first and "4.00" in first and "3, 3 MiB" in first and "25%" in first
    assert second.split()[-1] == "0.5"


def test_the_updates_and_hours_of_a_plan_without_segments_are_unknown():
    row = forecast.table({"updates": {128: UPDATE}, "segments": []}).splitlines()[-1]
    assert row.split()[-2:] == ["-", "-"]


def test_the_notes_say_who_estimates_and_what_does_not_fit():
    text = "\n".join(forecast.notes(FOUND))
    assert "nothing was run" in text and "the compiler's estimate in cycles" in text
    assert "1 x 32 (20.0 GiB) would not fit; the nearest that does is 2 x 16" in text
    assert "1.5 hours; the recipe without growth: 2 hours (1.33 times as long)" in text


def test_what_fits_nowhere_is_told():
    failed = {"batch_size": 128, "num_devices": 4, "memory_limit": GIB, "error": "too small"}
    found = {**FOUND, "updates": {**FOUND["updates"], 128: failed}, "seconds": None}
    assert "none fits" in forecast.table(found)
    assert "too small" in forecast.notes(found)


def test_a_missing_compiler_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for name, extra in (("v5e:2x2", "tpu"), ("h100:8", "cuda")):
        with pytest.raises(ValueError, match=rf"pip install -e '\.\[{extra}\]'") as raised:
            forecast.check_compiler(parse(name))
        assert "\n" not in str(raised.value)


def test_a_killed_compilation_says_what_to_do(monkeypatch):
    def killed(*_):
        raise BrokenProcessPool("A process in the process pool was terminated abruptly")

    monkeypatch.setattr(forecast, "check_compiler", lambda target: None)
    monkeypatch.setattr(forecast, "make_pool", ThreadPoolExecutor)
    monkeypatch.setattr(forecast, "_compile_one", killed)
    with pytest.raises(MemoryError, match="take --compile_processes=1, or a machine") as raised:
        forecast.forecast(digits.get_config("hybrid"), parse("v5e:2x2"), 1437)
    assert "\n" not in str(raised.value)


# A command whose worker compiles for an hour.
BUSY = """
import time
from batchgrow.targets import forecast
pool = forecast.make_pool(1)
pool.submit(print, flush=True).result()
pool.submit(time.sleep, 3600)
print(flush=True)
time.sleep(3600)
"""


@pytest.mark.slow
def test_a_compilation_ends_with_the_command_that_was_killed():
    with subprocess.Popen([sys.executable, "-c", BUSY], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.readline()
        process.kill()
        process.communicate(timeout=120)  # until the worker has closed the pipe too


def test_variants_are_added_to_the_file_of_the_same_compiler(tmp_path, monkeypatch):
    path, target = tmp_path / "out" / "c.json", parse("v5e:2x2")
    update = {"num_microbatches": 2, "microbatch_size": 8, "seconds": 0.5}
    found = {"updates": {64: update | {"compile_seconds": 1.0}}, "segments": []}
    forecasts.write(path, target, "grow", found)
    forecasts.write(path, target, "decay", {"refused": "no layout"})
    whole = json.loads(path.read_text())
    assert (whole["target"], list(whole["variants"])) == ("v5e:2x2", ["grow", "decay"])
    assert whole["variants"]["decay"]["refused"] == "no layout"
    assert whole["variants"]["grow"]["updates"]["64"] == update
    monkeypatch.setattr(forecasts, "compiler_versions", lambda target: {"jax": "another"})
    forecasts.write(path, target, "grow", found)
    assert list(json.loads(path.read_text())["variants"]) == ["grow"]


def test_a_record_stays_whole_where_the_next_cannot_be_written(tmp_path):
    path, target = tmp_path / "c.json", parse("v5e:2x2")
    forecasts.write(path, target, "decay", {"refused": "no layout"})
    before = path.read_text()
    (tmp_path / "c.json.new").mkdir()
    with pytest.raises(OSError, match="is a folder"):
        forecasts.write(path, target, "grow", {"refused": "no layout"})
    assert path.read_text() == before


def test_only_a_missing_layout_is_recorded_as_refused(monkeypatch):
    def unknown(*_, **__):
        raise ValueError("--target=v5e:3x5: no such slice")

    monkeypatch.setattr(forecasts, "_CACHE", SimpleNamespace(value=""))
    monkeypatch.setattr(forecasts, "forecast", unknown)
    found = forecasts.forecast_of(cifar10.get_config("hybrid"), parse("v5e:16x16"))
    assert "cannot be laid out on 256 devices" in found["refused"]
    with pytest.raises(ValueError, match="no such slice"):
        forecasts.forecast_of(digits.get_config("hybrid"), parse("v5e:2x2"))


def test_the_data_say_how_many_they_are_where_the_config_does_not(monkeypatch):
    monkeypatch.setattr(forecasts, "_CACHE", SimpleNamespace(value=""))
    monkeypatch.setattr(forecasts, "forecast", lambda _, __, num_examples, **___: num_examples)
    config = digits.get_config("hybrid")
    config.data.num_train_examples = None
    assert forecasts.forecast_of(config, parse("v5e:2x2")) == 1437


# Rows of `bench_compiled`: all fits, the peer does not, ours does not.
ROWS = """
import json
from types import SimpleNamespace
import jax
from experiments import bench_compiled
from batchgrow.targets.compile import Compiled
ours = {"num_microbatches": 1, "cycles": 9.0, "memory_needed": 2**20, "collectives": []}
def compiled(size):
    if size > 32:
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Used 20G of 15G hbm\\nand more")
    cycles = 'backend_config={"estimated_cycles":"3"}'
    return Compiled(text=f"ENTRY %m () -> s32[] {{\\n  ROOT %c = s32[] copy(), {cycles}\\n}}")
def updated(_, __, size, ___):
    return ours if size < 512 else {"error": "too small"}
bench_compiled.mesh_of = lambda target: SimpleNamespace(size=4)
bench_compiled.compile_update = updated
bench_compiled.Compiler = lambda *_: compiled
bench_compiled.MAKE = {"resnet50": lambda size, _: (None, lambda mesh: size)}
bench_compiled.forecast.check_compiler = lambda target: None
bench_compiled.compiler_versions = lambda target: {}
bench_compiled.benchmark.run(bench_compiled.main)
"""


def test_a_row_has_none_for_what_does_not_fit():
    done = subprocess.run(
        [sys.executable, "-c", ROWS, "--models=resnet50", "--batch_sizes=32,64,128", "--json"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    cycles = [(row["ours_cycles"], row["peer_cycles"], row["ratio"]) for row in rows]
    assert cycles == [(9, 3, 3.0), (9, None, None), (None, None, None)]
    assert len({tuple(row) for row in rows}) == 1
    assert "resnet50 at 64 a device: the peer does not fit: RESOURCE_EXHAUSTED" in done.stderr
    assert "resnet50 at 128 a device: too small" in done.stderr


def test_a_config_without_variants_needs_some():
    assert "hybrid" in forecasts.variants_of("configs/digits.py")
    for file in ("configs/base.py", "configs/nothing.py"):
        with pytest.raises(ValueError, match=f"--configs={file}: not a file that has VARIANTS"):
            forecasts.variants_of(file)


def test_the_minutes_of_resnet50_in_the_docs_follow_from_the_recorded_forecasts():
    def recorded(target: str) -> dict:
        return json.loads((RESULTS / f"imagenet_resnet50_{target}.json").read_text())["variants"]

    half, whole = recorded("v2_8x16"), recorded("v2_16x16")
    update = whole["large_batch"]["updates"]["16384"]["seconds"]
    first, *grown = half["increasing_batch"]["segments"]
    grown_updates = sum(segment["num_updates"] for segment in grown)
    on_both = {
        "decaying_lr": half["decaying_lr"]["seconds"],
        "increasing_batch": first["seconds"] + grown_updates * update,
        "large_batch": whole["large_batch"]["seconds"],
    }
    page = (ROOT / "docs" / "imagenet.md").read_text()
    for variant, found in half.items():
        row = next(x for x in page.splitlines() if re.match(rf"\| `{variant}` \| [\d.]+ ", x))
        cells = [x.strip() for x in row.strip("|").split("|")]
        seconds = [found["seconds"], on_both.get(variant)]
        seconds += [recorded(name)[variant]["seconds"] for name in ("v5e_16x16", "v6e_16x16")]
        minutes = ["" if x is None else f"{x / 60:.1f}" for x in seconds]
        assert [cells[i] for i in (1, 2, 4, 5)] == minutes
