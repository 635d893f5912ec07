"""Made-up run folders of two kinds of task, for tests of the report."""

import dataclasses
import json
import math
import pathlib
from typing import Any

import numpy as np

from batchgrow import report

NUM_EXAMPLES, NUM_EPOCHS, FACTOR = 1500, 12, 4
STEPS = (0, 4, 8, 12)
BATCH_FACTORS = {"decaying_lr": (1, 1, 1), "hybrid": (1, 4, 4), "increasing_batch": (1, 4, 16)}
NUM_SAMPLES = 60  # of the noise scale


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of task: what its run folders hold, and how its numbers are shown."""

    experiment: str
    task: str
    model: str
    metrics: tuple[dict[str, Any], ...]
    finals: dict[str, float]
    shown: str  # the first metric's name in sentences
    paper: float
    shown_paper: str

    @property
    def metric(self):
        return self.metrics[0]

    @property
    def test(self):
        return f"test_{self.metric['name']}"

    def at(self, loss, epoch, final):
        """The first metric on the way to `final`."""
        if self.metric["percent"]:
            return final - 0.5 * math.exp(-epoch) - 0.01 * loss
        return final * math.exp(loss)


def metric(name, better, percent=False):
    return {"name": name, "better": better, "percent": percent}


CLASSIFICATION = Kind(
    experiment="digits",
    task="classification",
    model="conv_net",
    metrics=(metric("accuracy", "higher", percent=True), metric("loss", "lower")),
    finals={"decaying_lr": 0.970, "hybrid": 0.972, "increasing_batch": 0.968},
    shown="accuracy",
    paper=0.943,
    shown_paper="94.3%",
)
LANGUAGE = Kind(
    experiment="characters",
    task="language",
    model="transformer",
    metrics=(metric("bits_per_byte", "lower"), metric("loss", "lower")),
    finals={"decaying_lr": 1.620, "hybrid": 1.612, "increasing_batch": 1.631},
    shown="bits per byte",
    paper=1.58,
    shown_paper="1.58",
)
KINDS = (CLASSIFICATION, LANGUAGE)


def paper_of(kind):
    return {
        "decaying_lr": {kind.test: kind.paper, "updates": 80000, "source": "section 5.2"},
        "increased_momentum": {kind.test: kind.paper, "command": "python -m experiments.fill_me"},
    }


def make_plan(variant):
    segments = []
    for number, batch_factor in enumerate(BATCH_FACTORS[variant]):
        start, end = STEPS[number] * NUM_EXAMPLES, STEPS[number + 1] * NUM_EXAMPLES
        batch = 20 * batch_factor
        rate = 0.1 * batch_factor / FACTOR**number
        noise = rate * NUM_EXAMPLES / (batch * 0.1)
        segments.append(
            {
                "start_examples": start,
                "end_examples": end,
                "num_updates": round((end - start) / batch),
                "batch_size": batch,
                "learning_rate_start": rate,
                "learning_rate_end": rate,
                "momentum": 0.9,
                "noise_scale_start": noise,
                "noise_scale_end": noise,
            }
        )
    each = NUM_SAMPLES // len(segments)
    return {
        "num_examples": NUM_EXAMPLES,
        "num_epochs": NUM_EPOCHS,
        "num_updates": sum(segment["num_updates"] for segment in segments),
        "segments": segments,
        "noise_scale": [row["noise_scale_start"] for row in segments for _ in range(each)],
    }


def make_rows(kind, plan, final, rng):
    """Two rows an epoch; the loss falls with the epochs and steps down where the noise does."""
    rows, updates = [], 0.0
    for half in range(1, 2 * NUM_EPOCHS + 1):
        epoch = half / 2
        number = sum(epoch > step for step in STEPS[1:-1])
        segment = plan["segments"][number]
        updates += NUM_EXAMPLES / 2 / segment["batch_size"]
        loss = (
            (0.02 + 2.2 * math.exp(-epoch / 1.5)) / 2.5**number * (1 + 0.1 * rng.standard_normal())
        )
        row = {
            "examples_seen": round(epoch * NUM_EXAMPLES),
            "updates": round(updates),
            "epoch": epoch,
            "segment": number,
            "batch_size": segment["batch_size"],
            "learning_rate": segment["learning_rate_start"],
            "momentum": segment["momentum"],
            "noise_scale": segment["noise_scale_start"],
            "train_loss": loss,
        }
        if half % 2 == 0:
            row |= {"test_loss": loss + 0.1, kind.test: kind.at(loss, epoch, final)}
        rows.append(row)
    rows[-1][kind.test] = final
    return rows


def make_run(
    folder,
    variant,
    seed,
    *,
    kind=CLASSIFICATION,
    final=None,
    finished=True,
    optimizer="momentum",
    share_of_peak=None,
):
    """A run folder as `train` leaves it; an unfinished one stops in mid-row after a third."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True)
    plan = make_plan(variant)
    rng = np.random.default_rng([seed, len(variant)])
    if final is None:
        final = kind.finals[variant] + 0.002 * rng.standard_normal()
    rows = make_rows(kind, plan, final, rng)
    config = {
        "name": kind.experiment,
        "variant": variant,
        "seed": seed,
        "optimizer": {"name": optimizer, "weight_decay": 5e-4},
        "model": {"name": kind.model},
        "task": {"name": kind.task},
        "data": {"name": "some", "num_train_examples": NUM_EXAMPLES},
        "run": {"data_dir": str(folder)},
        "recipe": {"learning_rate": 0.1, "batch_size": 20},
    }
    lines = [json.dumps(row) for row in rows]
    if not finished:
        lines = lines[:8] + [lines[8][:40]]
    seconds = {"compile": 4.0, "input": 0.5, "eval": 1.5, "checkpoint": 0.75, "step": 12.0 + seed}
    summary = {
        "final": {"test_loss": 0.1, kind.test: final, "train_loss": rows[-1]["train_loss"]},
        "num_updates": plan["num_updates"],
        "wall_seconds": 20.0 + seed,
        "seconds": seconds,
        "segments": [
            {
                "batch_size": segment["batch_size"],
                "examples_per_second": 9000.0 + 1000 * seed,
                "share_of_peak": share_of_peak,
            }
            for segment in plan["segments"]
        ],
        "versions": {"python": "3.11.2", "jax": "0.10.2", "flax": "0.12.8", "batchgrow": "0.2.0"},
        "devices": {"platform": "cpu", "kind": "cpu", "count": 1, "processes": 1},
        "commit": "abc1234",
        "command": f"python -m experiments.{kind.experiment} --seed={seed}",
    }
    task = {"format": 2, "name": kind.task, "metrics": kind.metrics}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "plan.json").write_text(json.dumps(plan))
    (folder / "task.json").write_text(json.dumps(task))
    (folder / "metrics.jsonl").write_text("\n".join(lines) + ("\n" if finished else ""))
    if finished:
        (folder / "summary.json").write_text(json.dumps(summary))
    return report.read_run(str(folder))


def make_runs(folder, seeds=(0, 1), kind=CLASSIFICATION):
    return [
        make_run(folder / f"{variant}_{seed}", variant, seed, kind=kind)
        for variant in BATCH_FACTORS
        for seed in seeds
    ]
