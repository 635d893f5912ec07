"""Commands as a user types them: what they print, complain of, and exit with."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
from typing import NamedTuple

import pytest
from run_folders import make_run

from batchgrow.config import make_plan
from batchgrow.run.folder import FORMAT, write_json
from batchgrow.run.signals import INTERRUPTED
from configs import digits, mnist
from experiments import cli

ROOT = pathlib.Path(__file__).parent.parent
TIME_LIMIT = 300  # seconds for one command, on a machine that is busy with other things

# Loads JAX once, then forks for each command; no device is touched before the fork. Commands get
# a platform that is not there unless they may train.
SERVER = """
import json, os, runpy, signal, sys, traceback
import jax, batchgrow.train

TIME_LIMIT = int(sys.argv[1])
for line in sys.stdin:
    module, argv, platform, log = json.loads(line)
    child = os.fork()
    if child == 0:
        signal.alarm(TIME_LIMIT)  # ends a command that hangs
        for stream, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(f"{log}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
        jax.config.update("jax_platforms", platform)
        sys.argv = [module, *argv]
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
            status = 0
        except SystemExit as exit:
            status = exit.code or 0
        except BaseException:
            traceback.print_exc()
            status = 1
        sys.stdout.flush()
        os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Done(NamedTuple):
    """How a command ended; `err` is without the warnings, which are whole lines."""

    status: int
    out: str
    err: str
    warnings: list[str]


def without_warnings(said: str) -> str:
    return "".join(x for x in said.splitlines(keepends=True) if not x.startswith("warning: "))


@pytest.fixture(scope="module")
def server():
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", SERVER, str(TIME_LIMIT)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


@pytest.fixture
def command(server, tmp_path):
    """Runs `python -m experiments.NAME FLAG ...`."""

    def run(name: str, *flags: str, platform: str = "nonexistent") -> Done:
        log = str(tmp_path / "log")
        json.dump([f"experiments.{name}", flags, platform, log], server.stdin)
        print(file=server.stdin, flush=True)
        status = int(server.stdout.readline())
        out, err = (pathlib.Path(f"{log}.{x}").read_text() for x in ("out", "err"))
        warnings = [line for line in err.splitlines() if line.startswith("warning: ")]
        return Done(status, out, without_warnings(err), warnings)

    return run


DIGITS = "--config=configs/digits.py:increasing_batch"


def test_plan_as_json_touches_no_device(command):
    done = command("plan", DIGITS, "--num_devices=4", "--json")
    assert done.status == 0, done.err
    made = make_plan(digits.get_config("increasing_batch"), 1437)
    plan = json.loads(done.out)
    assert plan == json.loads(json.dumps(made.to_dict(num_devices=4)))
    assert plan.keys() == {
        "num_examples", "num_epochs", "noise_scale", "num_updates", "segments", "bound",
    }  # fmt: skip
    assert plan["num_updates"] == sum(segment["num_updates"] for segment in plan["segments"])
    for segment in plan["segments"]:
        assert segment["per_device_batch_size"] * 4 == segment["batch_size"]
        segment.pop("nominal_start_examples", None)  # where it is not the start
        assert list(segment) == [
            "start_examples", "end_examples", "num_updates", "batch_size",
            "per_device_batch_size", "learning_rate_start", "learning_rate_end", "momentum",
            "noise_scale_start", "noise_scale_end",
        ]  # fmt: skip


def test_plan_as_a_table(command):
    done = command("plan", DIGITS)
    assert done.status == 0, done.err
    assert make_plan(digits.get_config("increasing_batch"), 1437).table(num_devices=1) in done.out


@pytest.mark.slow
def test_time_to_train_is_told_with_its_assumptions(command):
    """4 devices at 1 ms an example, nothing lost between them, for what the plan sees of digits."""
    flags = (DIGITS, "--num_devices=4", "--seconds_per_example=0.001", "--latency=0")
    done = command("plan", *flags, "--json")
    assert done.status == 0, done.err
    plan = json.loads(done.out)
    made = make_plan(digits.get_config("increasing_batch"), 1437)
    ideal = plan["segments"][-1]["end_examples"] * 0.001 / 4
    assert plan["time"]["seconds"] == pytest.approx(ideal, rel=0.01)
    assert plan["time"]["seconds"] > ideal
    shown = command("plan", *flags).out
    assert all(f"- {line}" in shown for line in plan["time"]["assumptions"])
    constant, grown = made.table(num_devices=4), made.table()
    assert constant in shown and grown not in shown
    # Devices that grow have one number in one table: not examples per device for the first of them.
    shown = command("plan", *flags, "--grow_devices").out
    assert grown in shown and constant not in shown


def test_a_field_on_the_command_line_changes_the_plan(command):
    done = command("plan", DIGITS, "--config.recipe.num_epochs=10", "--json")
    assert json.loads(done.out)["num_epochs"] == 10


def test_a_field_of_the_model_may_be_new(command):
    done = command("fields", DIGITS, "--config.model.dtype=bfloat16", "--config.model.channels=8")
    assert done.status == 0, done.err
    lines = [line.split()[0] for line in done.out.splitlines()]
    assert {"--config.model.dtype=bfloat16", "--config.model.channels=8"} <= set(lines)
    listed = [line.split()[0] for line in command("fields", DIGITS).out.splitlines()]
    assert "--config.model.dtype=float32" in listed  # the default of the class


def test_plan_warns_of_what_differs_from_the_recipe(command):
    (line,) = command("plan", DIGITS).warnings
    assert line.startswith("warning: plan: 2 of 4 segments are short")


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (
            ["--config=configs/digits.py:growing"],
            "unknown variant 'growing'; choose decaying_lr, hybrid",
        ),
        (["--config=configs/nothing.py"], "no such file: configs/nothing.py; configs has base, ci"),
        (["--config=configs/shakespear.py"], "; the nearest is configs/shakespeare.py"),
        (["--config=digits"], "--config: no such file: digits; the nearest is configs/digits.py"),
        (["--config=configs"], "--config: no such file: configs; configs has base, cifar10, diab"),
        ([], "--config is missing: --config=configs/NAME.py:VARIANT"),
        (
            [DIGITS, "--config.recipe.batch_sise=32"],
            "--config.recipe.batch_sise: no such config field; the nearest is 'recipe.batch_size'",
        ),
        (
            [DIGITS, "--config.recpe.num_epochs=3"],
            "--config.recpe.num_epochs: no such config field; the nearest is 'recipe.num_epochs'",
        ),
        (
            [DIGITS, "--config.recipe.lr=3"],
            "--config.recipe.lr: no such config field; the nearest is 'recipe.learning_rate'",
        ),
        (
            [DIGITS, "--config.optimizer.momentum=0.8"],
            "--config.optimizer.momentum: no such config field; the nearest is 'recipe.momentum'",
        ),
        (
            [DIGITS, "--config.noise.lr=3"],
            "--config.noise.lr: no such config field; there are by_layer, horizon_epochs, ",
        ),
        (
            ["--config=configs/cifar10.py", "--config.recipe.learning_rates.lion=3"],
            "--config.recipe.learning_rates.lion: no such config field; there are adam, momentum, ",
        ),
        (
            [DIGITS, "--config.recipe.learning_rates=3"],
            "--config.recipe.learning_rates is a section; give one of its fields: --config.recipe.",
        ),
        (
            [DIGITS, "--config.model.chanels=3"],
            "--config.model.chanels: no such config field; the nearest is 'model.channels'",
        ),
        (
            [DIGITS, "--config.model.dtpye=bfloat16"],  # which only the class mentions
            "--config.model.dtpye: no such config field; the nearest is 'model.dtype'",
        ),
        (
            [DIGITS, "--config.optimizer.nesterov=True"],
            "--config.optimizer.nesterov: no such config field",
        ),
        ([DIGITS, "--num_device=4"], "--num_device is not a flag; the nearest is --num_devices"),
        (
            [DIGITS, "--config.recipe.learning_rate=fast"],
            "--config.recipe.learning_rate=fast must be a finite number, at most 1e+30, above 0, o",
        ),
        ([DIGITS, "--config.seed=zero"], "--config.seed=zero must be a whole number, 0 or more"),
        ([DIGITS, "--config.run.progress=2"], "--config.run.progress=2 must be True or False"),
        ([DIGITS, "--config.model.channels=few"], "model.channels=few must be a whole number"),
        ([DIGITS, "--num_devices=x"], "--num_devices=x must be a whole number"),
        ([DIGITS, "--config.recipe.num_epochs=-1"], "num_epochs"),
        (
            [DIGITS, "--config.plan.name=shrink"],
            "unknown plan.name 'shrink'; choose decay, hybrid, grow",
        ),
        (
            [DIGITS, "--num_devices=3"],
            "cannot be laid out on 3 devices in ghost batches of 16; the",
        ),
        (
            [DIGITS, "--device=TPU v9"],
            "--device=TPU v9: no peak for float32 is known; give --seconds_per_example, or one of",
        ),
        ([DIGITS, "--device=TPU v2", "--seconds_per_example=1"], "say the same; give one of them"),
        (
            [DIGITS, "--target=v5e:2x2", "--num_devices=4"],
            "--num_devices=4 does not go with --target=v5e:2x2, which names the machine; leave out",
        ),
        (
            [DIGITS, "--target=v5e:2x2", "--device=TPU v2"],
            "--device=TPU v2 does not go with",
        ),
        ([DIGITS, "--target=v5e:2x2", "--grow_devices"], "--grow_devices=True does not go with"),
        ([DIGITS, "--target=v5e:2x2", "--bandwidth=5"], "--bandwidth=5.0 does not go with"),
        (
            [DIGITS, "--grow_devices"],
            "--grow_devices=True has no effect alone; add --seconds_per_example or --device",
        ),
        ([DIGITS, "--network=tree"], "--network=tree has no effect alone; add --seconds_per_exam"),
        (
            [DIGITS, "--seconds_per_example=1", "--utilisation=0.5"],
            "--utilisation=0.5 has no effect alone; add --device",
        ),
        ([DIGITS, "--compile_processes=2"], "--compile_processes=2 has no effect alone; add --tar"),
        ([DIGITS, "extra"], "unexpected argument 'extra'; flags begin with --"),
    ],
)
def test_bad_flags_are_one_line_that_names_them(flags, complaint, command):
    done = command("plan", *flags)
    assert done.status == 2
    assert complaint in done.err
    assert done.err.startswith("error: ") and done.err.count("\n") == 1
    assert done.out == ""


def test_plan_and_train_refuse_a_text_of_another_size_in_the_same_words(command, tmp_path):
    """The config says 15,685 windows. Without the text nothing can be compared."""
    text = tmp_path / "text.txt"
    flags = ["--config=configs/shakespeare.py", f"--config.data.name=text:{text}"]
    flags.append("--config.data.test_share=0.1")
    absent = command("plan", *flags, "--json")
    assert json.loads(absent.out)["num_examples"] == 15_685
    text.write_text("To be, or not to be. " * 100)  # 1,890 characters to train on
    plan, train = command("plan", *flags), command("train", *flags, f"--workdir={tmp_path}/run")
    assert plan.err == train.err and (plan.status, train.status) == (2, 2)
    assert f"num_train_examples is 15685, but text:{text} has 29 examples" in plan.err
    found = command("plan", *flags, "--config.data.num_train_examples=29", "--json")
    assert json.loads(found.out)["num_examples"] == 29


@pytest.fixture
def busy_folder(tmp_path):
    """The run folder of another seed."""
    folder = tmp_path / "busy"
    folder.mkdir()
    config = digits.get_config("increasing_batch")
    config.seed = 7
    write_json(folder / "task.json", {"format": FORMAT})
    write_json(folder / "config.json", config.to_dict())
    return folder


def test_bad_folders_are_one_line(command, tmp_path, busy_folder):
    (tmp_path / "file").write_text("mine")
    before = sorted(busy_folder.iterdir())
    for workdir, complaint in [
        ("", "workdir is empty; name a folder for the run: --workdir=runs/NAME"),
        (f"{tmp_path}/file", f"{tmp_path}/file is a file, not a folder; choose another workdir"),
        (f"{tmp_path}/file/run", f"file/run: {tmp_path}/file is a file, not a folder; choose"),
        (str(busy_folder), "another config (seed: 7 -> 0)"),
    ]:
        done = command("train", DIGITS, f"--workdir={workdir}", platform="cpu")
        assert (done.status, done.err.count("\n")) == (2, 1), done.err
        assert complaint in done.err
    assert sorted(p for p in busy_folder.iterdir() if p.name != ".lock") == before


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sweep", "schedules"])
def test_a_grid_below_a_run_is_refused(command, busy_folder, name):
    """A report finds the run above, and none of the grid."""
    flags = ("--config=configs/digits.py", f"--workdir={busy_folder}")
    done = command(name, *flags)
    assert (done.status, done.err.count("\n")) == (2, 1), done.err
    assert f"{busy_folder} is a run folder itself (it has config.json)" in done.err
    assert sorted(p.name for p in busy_folder.iterdir()) == ["config.json", "task.json"]


@pytest.mark.parametrize(
    ("flag", "complaint"),
    [
        ("--seconds_per_example=0", "seconds_per_example=0.0 must be above 0"),
        ("--plan_devices=0", "--plan_devices=0"),
    ],
)
def test_a_wrong_prediction_of_schedules_is_refused_before_anything_runs(
    command, tmp_path, flag, complaint
):
    flags = ("--config=configs/digits.py", f"--workdir={tmp_path}/runs", flag)
    done = command("schedules", *flags)
    assert (done.status, done.err.count("\n")) == (2, 1), done.err
    assert complaint in done.err
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_data_dir_is_where_data_is_looked_for(command, tmp_path):
    """Also by commands that open data in ways of their own; not where the run was recorded."""
    data_dir = tmp_path / "nowhere"
    moved = tmp_path / "moved"
    make_run(moved, "hybrid", 0)
    config = mnist.get_config("mlp")
    config.run.data_dir = "/recorded"
    write_json(moved / "config.json", config.to_dict())
    elsewhere = ("--config=configs/mnist.py", "--config.run.data_dir=/recorded")
    for name, *flags in [
        ("batch_size", *elsewhere, f"--out={tmp_path}/out"),
        ("landscape", str(moved), f"--out={tmp_path}/out"),
        ("rounding", *elsewhere),
        ("lab.__main__", "transfer", f"--workdir={tmp_path}/lab"),
    ]:
        platform = "cpu" if name == "rounding" else "nonexistent"  # It asks for devices first.
        done = command(name, *flags, f"--data_dir={data_dir}", platform=platform)
        assert (done.status, done.err.count("\n")) == (2, 1), (name, done.err)
        assert f"in run.data_dir '{data_dir}'" in done.err, name


@pytest.mark.parametrize(
    ("connection", "complaint"),
    [
        (("foo", 2, 0), "--coordinator_address 'foo' must be HOST:PORT of process 0"),
        (("foo:", 2, 0), "--coordinator_address 'foo:' must be HOST:PORT of process 0"),
        (("localhost:1", 2, 2), "--process_id 2 must be 0 or more and less than --num_processes 2"),
        (("localhost:1", 0, 0), "--process_id 0 must be 0 or more and less than --num_processes 0"),
    ],
)
def test_a_wrong_connection_is_one_line(command, tmp_path, connection, complaint):
    names = ("coordinator_address", "num_processes", "process_id")
    flags = [f"--{name}={value}" for name, value in zip(names, connection, strict=True)]
    done = command("train", DIGITS, f"--workdir={tmp_path}/run", *flags, platform="cpu")
    assert (done.status, done.err) == (2, f"error: {complaint}\n")


@pytest.mark.slow
def test_ctrl_c_ends_the_wait_for_other_processes(tmp_path):
    """JAX waits for minutes, and no handler of Python is called meanwhile."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"--coordinator_address=127.0.0.1:{server.getsockname()[1]}"
        connection = [address, "--num_processes=2", "--process_id=1"]
        flags = [DIGITS, f"--workdir={tmp_path}/run", *connection]
        command = [sys.executable, "-m", "experiments.train", *flags]
        with subprocess.Popen(command, cwd=ROOT) as process:
            server.settimeout(120)
            server.accept()[0].close()
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == -signal.SIGINT  # 130 in a shell


@pytest.mark.parametrize("name", ["plan", "sweep"])
def test_a_config_without_get_config_is_one_line(command, tmp_path, name):
    (tmp_path / "empty.py").write_text("x = 1\n")
    workdir = [] if name == "plan" else [f"--workdir={tmp_path}"]
    done = command(name, f"--config={tmp_path}/empty.py", *workdir)
    assert (done.status, done.err) == (2, "error: --config: the file has no function get_config\n")


@pytest.mark.slow
def test_divergence_has_an_exit_status_of_its_own(command, tmp_path):
    done = command(
        "train",
        DIGITS,
        "--config.recipe.learning_rate=1e30",
        "--config.recipe.num_epochs=0.1",
        "--config.log_every_epochs=0.1",
        "--config.model.channels=2",
        "--config.run.tensorboard=False",
        f"--workdir={tmp_path}/run",
        platform="cpu",
    )
    assert done.status == 3, done.err
    complaint = done.err.splitlines()[-1]
    assert complaint.startswith("error: the loss is nan between updates 1 and 9 ")


@pytest.mark.slow
def test_a_preempted_run_says_nothing_more(tmp_path):
    """Python warned of semaphores that were left at the exit."""
    config = [DIGITS, "--config.model.channels=2", "--config.recipe.num_epochs=1000"]
    command = [sys.executable, "-m", "experiments.train", *config, f"--workdir={tmp_path}/run"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        next(line for line in process.stderr if "compiling for batch size" in line)
        process.send_signal(signal.SIGTERM)
        said = [line.strip() for line in process.stderr]
    assert process.returncode == 75
    assert said == [
        "SIGTERM: stopping after this update",
        f"digits:increasing_batch: preempted ({tmp_path}/run); "
        "start the same command again to continue",
    ]


# A training command that fails while a thread goes on, as those of Orbax may.
BUSY = """
import threading, time
from experiments.launch import launch
def main(_):
    threading.Thread(target=time.sleep, args=(3600,)).start()
    raise OSError("no space left")
launch(main)
"""


@pytest.mark.slow
def test_a_failed_command_does_not_wait_for_threads():
    command = [sys.executable, "-c", BUSY]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (1, "error: no space left\n")


@pytest.mark.parametrize("variant", ["../outside", "/tmp/outside", "..", "a/b"])
def test_a_variant_that_is_no_folder_name_is_refused_by_a_sweep(command, tmp_path, variant):
    path = tmp_path / "odd.py"
    path.write_text(
        "from configs import digits\n"
        "def get_config(variant=''):\n"
        "    config = digits.get_config()\n"
        f"    config.variant = {variant!r}\n"
        "    return config\n"
    )
    flags = (f"--config={path}", "--variants=x", f"--workdir={tmp_path}/runs")
    done = command("sweep", *flags, platform="cpu")
    assert (done.status, done.err.count("\n")) == (2, 1), done.err
    assert f"{variant!r} cannot name the folder of a cell" in done.err
    assert not (tmp_path / "runs").exists() and not (tmp_path / "outside").exists()


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--config.recipe.learning_rate=0.1,-1"], "recipe.learning_rate -1.0 must be"),
        (["--config.recipe.batch_size=16,many"], "many"),
        (["--config.recipe.batch_sise=16,32"], "batch_sise: no such config field; the nearest is"),
        (["--config.recipe.factor=0.2,"], "a value is empty"),
        (["--config.seed=1,2", "--seeds=2"], "--seeds and --config.seed say the same"),
        (
            ["--config.recipe.factor", "0.2"],
            "factor: give its value after an equals sign",
        ),
        (["--sedes=2"], "--sedes is not a flag; the nearest is --seeds"),
        (["more"], "unexpected argument 'more'"),
        (["--variants=growing"], "unknown variant 'growing'; choose decaying_lr, hybrid"),
        (["--x=recipe.batch_sise"], "--x=recipe.batch_sise: no such config field; the nearest is"),
        (
            ["--y=test_los", "--config.recipe.batch_size=16,32"],
            "--y=test_los: choose test_accuracy, test_loss, train_accuracy, train_loss, num",
        ),
        (["--y=test_loss"], "--y=test_loss: no number differs between runs of one variant; give"),
    ],
)
def test_a_wrong_sweep_is_one_line_before_anything_runs(command, tmp_path, flags, complaint):
    done = command("sweep", "--config=configs/digits.py", f"--workdir={tmp_path}/runs", *flags)
    assert (done.status, done.err.count("\n")) == (2, 1), done.err
    assert complaint in done.err
    assert not (tmp_path / "runs").exists()


def test_the_list_of_commands(command):
    done = command("__main__")
    assert "python -m experiments.plan " in done.out and "python -m experiments.digits " in done.out


def test_ctrl_c_while_jax_is_imported_is_quiet():
    # -X importtime tells when; the command is not yet at its own code.
    command = [sys.executable, "-X", "importtime", "-m", "experiments.train", "--help"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        next(line for line in process.stderr if line.endswith(" jax.version\n"))
        process.send_signal(signal.SIGINT)
        said = [line for line in process.stderr if not line.startswith("import time:")]
    assert (process.returncode, said) == (INTERRUPTED, [])


@pytest.mark.slow
def test_a_reader_that_goes_away_is_no_error():
    """`| head`, whose end closes the pipe."""
    reads, writes = os.pipe()
    os.close(reads)
    command = [sys.executable, "-m", "experiments.plan", DIGITS, "--json"]
    done = subprocess.run(command, cwd=ROOT, stdout=writes, stderr=subprocess.PIPE, text=True)
    os.close(writes)
    assert (done.returncode, without_warnings(done.stderr)) == (cli.BROKEN_PIPE, "")


# A command that fails with the error that its first argument names.
FAILING = """
import sys
from experiments import cli
from batchgrow.data.records import BadRecordError
error = eval(sys.argv.pop(1))
def main(_):
    raise error
cli.run(main)
"""


@pytest.mark.parametrize(
    ("error", "flags", "status", "traceback"),
    [
        ("ValueError('no')", [], 2, False),
        ("ValueError('no')", ["--verbosity=1"], 2, True),
        ("OSError('no')", [], 1, False),
        ("MemoryError('no')", [], 1, False),
        ("BadRecordError(3, 'x.jpg', 'no')", [], 1, False),
        ("RuntimeError('no')", [], 1, True),
        ("KeyError('no')", [], 1, True),
    ],
)
def test_only_faults_of_the_program_show_a_traceback(error, flags, status, traceback):
    command = [sys.executable, "-c", FAILING, error, *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == status
    assert ("Traceback" in done.stderr) == traceback
    assert "no" in done.stderr.splitlines()[-1]
