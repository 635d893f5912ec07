"""What docs/cloud holds is run with fake clusters, and agrees with the commands' exit statuses."""

import os
import pathlib
import re
import subprocess
from collections.abc import Sequence
from typing import Any

import pytest
import yaml
from absl import flags

from batchgrow.experiment import Outcome
from batchgrow.run.signals import INTERRUPTED
from experiments import cli, launch

CLOUD = pathlib.Path(__file__).parent.parent / "docs" / "cloud"
PREEMPTED, GROWS = launch.STATUS[Outcome.PREEMPTED], launch.STATUS[Outcome.GROWTH]
FINAL = (cli.BAD_INPUT, launch.DIVERGED, INTERRUPTED)  # another start would end alike
# Each fake notes its arguments. What it says and its status are the next line of its script.
FAKE = """#!/bin/bash
name=$(basename "$0")
echo "$name $(printf '%s|' "$@" | tr '\\n' ' ')" >> "$FAKES/calls"
read -r status said < <(head -n 1 "$FAKES/$name.says" 2>/dev/null)
sed -i 1d "$FAKES/$name.says" 2>/dev/null
echo $said
exit ${status:-0}
"""


def run(
    folder: pathlib.Path, script: str, says: dict[str, Sequence[str]], **environment: str
) -> tuple[int, list[str]]:
    """The exit status of a script and its calls of the commands in `says`, which are faked."""
    for name, lines in says.items():
        (folder / name).write_text(FAKE)
        (folder / name).chmod(0o755)
        (folder / f"{name}.says").write_text("".join(f"{line}\n" for line in lines))
    (folder / "calls").write_text("")
    path = f"{folder}:{os.environ['PATH']}"
    command = ["bash", str(CLOUD / script), "--config=a b:c", "--workdir=gs://x/y"]
    done = subprocess.run(
        command,
        env={**os.environ, "PATH": path, "FAKES": str(folder), **environment},
        timeout=60,
    )
    return done.returncode, (folder / "calls").read_text().splitlines()


@pytest.mark.parametrize(
    ("status", "nodes", "then"),
    [
        (0, 1, []),
        (1, 1, []),
        (launch.DIVERGED, 1, []),
        (PREEMPTED, 1, ["scontrol requeue|7|"]),
        (GROWS, 1, ["sbatch --nodes=2|"]),
        (GROWS, 3, ["sbatch --nodes=4|"]),  # not more than there are
    ],
)
def test_slurm(tmp_path: pathlib.Path, status: int, nodes: int, then: list[str]) -> None:
    ended, calls = run(
        tmp_path,
        "train.sbatch",
        {"srun": [str(status)], "scontrol": [], "sbatch": []},
        SLURM_JOB_ID="7",
        SLURM_JOB_NUM_NODES=str(nodes),
        MAX_NODES="4",
    )
    assert ended == status
    assert "|--distributed|--stop_at_growth|--config=a b:c|--workdir=gs://x/y|" in calls[0]
    assert [call[: len(start)] for call, start in zip(calls[1:], then, strict=True)] == then
    if status == GROWS:
        assert calls[1].endswith("train.sbatch|--config=a b:c|--workdir=gs://x/y|")


def test_slurm_does_not_stop_to_grow_on_the_last_nodes(tmp_path: pathlib.Path) -> None:
    says = {"srun": ["0"]}
    _, calls = run(
        tmp_path, "train.sbatch", says, SLURM_JOB_ID="7", SLURM_JOB_NUM_NODES="4", MAX_NODES="4"
    )
    assert "stop_at_growth" not in calls[0]


ACTIVE, SSH = "0 ACTIVE", "0"


@pytest.mark.parametrize(
    ("says", "ended", "verbs"),
    [
        # describe; install, train, status
        ([ACTIVE, SSH, SSH, "0 0"], 0, ["describe", "ssh", "ssh", "ssh"]),
        ([ACTIVE, SSH, SSH, "0 3"], 3, ["describe", "ssh", "ssh", "ssh"]),
        ([ACTIVE, SSH, SSH, "0 76"], 76, ["describe", "ssh", "ssh", "ssh"]),
        (
            [ACTIVE, SSH, SSH, "0 75", ACTIVE, SSH, SSH, "0 0"],
            0,
            ["describe", "ssh", "ssh", "ssh"] * 2,
        ),
        (  # the slice is gone, and its hosts with it: deleted, created, waited for
            [ACTIVE, SSH, "255", "255", *["0 SUSPENDED"] * 2, "0", "1", "1", "0"]
            + ["0 WAITING_FOR_RESOURCES"] * 2
            + [ACTIVE, SSH, SSH, "0 0"],
            0,
            ["describe", "ssh", "ssh", "ssh", "describe", "describe", "delete"]
            + ["describe", "describe", "create", "describe", "describe"]
            + ["describe", "ssh", "ssh", "ssh"],
        ),
    ],
)
def test_tpu(tmp_path: pathlib.Path, says: list[str], ended: int, verbs: list[str]) -> None:
    settings = {"TPU": "t", "ZONE": "z", "TYPE": "v5litepod-16", "SOURCE": "url", "PAUSE": "0"}
    status, calls = run(tmp_path, "train_tpu.sh", {"gcloud": says}, **settings)
    assert status == ended
    found = [re.search(r"\|(describe|ssh|delete|create)\|", call) for call in calls]
    assert [match and match[1] for match in found] == verbs
    training = next(call for call in calls if "experiments.train" in call)
    assert "--worker=all" in training and r"--config=a\ b:c --workdir=gs://x/y" in training


def policy() -> tuple[dict[str, Any], dict[str, Any]]:
    spec = yaml.safe_load((CLOUD / "jobset.yaml").read_text())["spec"]
    return spec, spec["replicatedJobs"][0]["template"]["spec"]


def action(exit_status: int) -> str:
    """What JobSet does when a host ends with this status, by the rules of both policies."""
    spec, job = policy()
    codes = job["podFailurePolicy"]["rules"][0]["onExitCodes"]
    listed = exit_status in codes["values"]
    reason = "PodFailurePolicy" if listed else "BackoffLimitExceeded"
    # As Kubernetes words it.
    message = f"Container train for pod x failed with exit code {exit_status} matching FailJob rule"
    for rule in spec["failurePolicy"]["rules"]:
        patterns = rule.get("onJobFailureMessagePatterns", [""])
        if reason in rule["onJobFailureReasons"] and any(re.search(p, message) for p in patterns):
            return rule["action"]
    return "RestartJobSet"


def test_jobset_restarts_by_exit_status() -> None:
    assert action(PREEMPTED) == "RestartJobSetAndIgnoreMaxRestarts"
    for status in (*FINAL, GROWS):
        assert action(status) == "FailJobSet", status
    for status in (1, 134, 137):  # a full disk, a host that died, a killed process
        assert action(status) == "RestartJobSet", status


def test_jobset_starts_as_many_processes_as_it_has_hosts() -> None:
    spec, job = policy()
    document = yaml.safe_load((CLOUD / "jobset.yaml").read_text())
    assert (document["apiVersion"], document["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert job["backoffLimit"] == 0 and job["completionMode"] == "Indexed"
    assert spec["network"]["enableDNSHostnames"]
    pod = job["template"]["spec"]
    assert pod["restartPolicy"] == "Never"  # a pod failure policy wants it
    (container,) = pod["containers"]
    given = dict(re.findall(r"--(\w+)(?:=(\S+))?", container["args"][0]))
    assert given.keys() - {"config"} <= set(flags.FLAGS) | {"workdir"}
    assert int(given["num_processes"]) == job["parallelism"] == job["completions"]
    name = document["metadata"]["name"]
    host, port = given["coordinator_address"].split(":")
    assert host == f"{name}-{spec['replicatedJobs'][0]['name']}-0-0.{name}"
    assert int(port) == container["ports"][0]["containerPort"]
    listed = job["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"]
    assert sorted(listed) == sorted([*FINAL, PREEMPTED, GROWS])
