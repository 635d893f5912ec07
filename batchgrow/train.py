"""`train(config, workdir)`: from a config to a finished run. Below it, nobody sees a config."""

import json
from contextlib import ExitStack
from dataclasses import replace
from statistics import median
from typing import Any

import jax
from etils import epath
from jax.sharding import Mesh

from batchgrow import environment, parallel
from batchgrow.run.checkpoints import Checkpoints, Notes, last_position
from batchgrow.config import Config, check, check_layouts, make_network, make_schedule
from batchgrow.data.augment import make_prepare
from batchgrow.data.feed import Feed
from batchgrow.compile import enable_compilation_cache
from batchgrow.flops import peak_flops, training_flops
from batchgrow.loop import Cadence, Outcome, Run, run_phases
from batchgrow.open_data import open_data
from batchgrow.optimizer import make_optimizer
from batchgrow.run.signals import Preemption
from batchgrow.programs import Programs
from batchgrow.run.progress import Progress
from batchgrow.run.folder import check_config, claim, read_json, trajectory_fields, write_json
from batchgrow.run.log import Clock, RunLog
from batchgrow.plan.plan import Schedule
from batchgrow.state import TrainState, create_state


def train(
    config: Config, workdir: str, *, override_config: bool = False, stop_at_phase_end: bool = False
) -> Outcome:
    """Trains what `config` describes, from the last checkpoint in `workdir` if there is one.

    Every wrong field is found before anything is compiled or written.

    Args:
      config: as from `configs.NAME.get_config`.
      workdir: the run folder, made if need be.
      override_config: go on although fields under `run` differ from the folder's config.
      stop_at_phase_end: as `config.run.stop_at_phase_end`, without a mark in the folder's config.

    Raises:
      ValueError: for a wrong field, a batch that cannot be laid out, or data of another size.
      FolderError: if the folder cannot be used.
      NonFiniteLoss: if training diverges.
      RuntimeError: for an example that cannot be read.
      MemoryError: if a device is too small for one ghost batch.
      OSError: if the run folder cannot be written any more.
    """
    check(config)
    schedule = make_schedule(config)
    mesh = parallel.make_mesh(config.run.num_devices)
    check_layouts(config, schedule, mesh.size, last_position(workdir))
    is_writer = jax.process_index() == 0
    with ExitStack() as stack:
        folder = stack.enter_context(claim(workdir, is_writer=is_writer))
        preemption = stack.enter_context(Preemption())
        files = [read_json(folder / f"{name}.json") for name in ("config", "plan", "summary")]
        if files[0] is not None:
            check_config(folder, files[0], config.to_dict(), override=override_config)
        if None not in files:
            return Outcome.FINISHED
        run, state, examples_seen = _start(stack, config, schedule, mesh, folder, preemption)
        if stop_at_phase_end:
            run = replace(run, stop_at_phase_end=True)
        try:
            outcome = run_phases(run, state, examples_seen)
        except ValueError as error:
            # What a user can get wrong was found before.
            raise RuntimeError(f"a fault of the program, not of its input: {error}") from error
        if outcome is Outcome.FINISHED and run.log is not None:
            summary = summarise(run, share_of_peak_per_rate(config, mesh))
            hyper_parameters = _hyper_parameters(config, schedule.num_updates)
            run.log.finish(hyper_parameters, _final_metrics(summary))
            write_json(folder / "summary.json", summary)
        return outcome


def _start(
    stack: ExitStack,
    config: Config,
    schedule: Schedule,
    mesh: Mesh,
    folder: epath.Path,
    preemption: Preemption,
) -> tuple[Run, TrainState, int]:
    """Opens all that a run needs, from its last checkpoint on; `stack` closes it."""
    is_writer = jax.process_index() == 0
    enable_compilation_cache(config.run.compilation_cache_dir)
    feed, test_batches, test_batch = open_data(config, schedule, mesh)
    stack.callback(feed.close)
    state, programs = build(config, mesh, schedule.phases[0].momentum, feed, test_batch)
    stack.enter_context(programs)
    checkpoints = stack.enter_context(
        Checkpoints(
            folder,
            keep=config.run.keep_checkpoints,
            config=config.to_dict(),
            plan=schedule.to_dict(),
        )
    )
    examples_seen, state, notes = _restore(checkpoints, parallel.replicate(state, mesh))
    # Once more: the newest checkpoint may have been damaged, and the one before in another phase.
    check_layouts(config, schedule, mesh.size, examples_seen)
    log = None
    if is_writer:
        write_json(folder / "config.json", config.to_dict())
        write_json(folder / "plan.json", schedule.to_dict(num_devices=mesh.size))
        log = stack.enter_context(
            RunLog(folder, rows=notes["rows"], tensorboard=config.run.tensorboard)
        )
        log.text("plan", f"```\n{schedule.table(num_devices=mesh.size)}\n```")
    progress = stack.enter_context(
        Progress(
            schedule.end_examples,
            examples_seen,
            f"{config.name}:{config.variant}",
            config.run.progress and is_writer,
        )
    )
    if examples_seen:
        progress.say(f"resumed at {examples_seen} examples ({folder}/checkpoints)")
    run = Run(
        schedule=schedule,
        cadence=_cadence(config),
        programs=programs,
        feed=feed,
        dataset=parallel.replicate(feed.dataset, mesh),
        test_batches=test_batches,
        log=log,
        checkpoints=checkpoints,
        clock=Clock(notes["seconds"]),
        progress=progress,
        preemption=preemption,
        compile_ahead=config.run.compile_ahead,
        stop_at_phase_end=config.run.stop_at_phase_end,
        compiled=notes["compiled"],
    )
    return run, state, examples_seen


def summarise(run: Run, share_of_peak_per_rate: float | None) -> dict[str, Any]:
    """What `summary.json` says of a finished run (this process writes the log).

    Args:
      share_of_peak_per_rate: see there.
    """
    assert run.log is not None
    rows = run.log.rows
    evaluated = [row for row in rows if "test_accuracy" in row]
    phases = []
    for index, phase in enumerate(run.schedule.phases):
        rates = [row["images_per_second"] for row in rows if row["phase"] == index]
        rate = median(rates) if rates else None
        share = rate * share_of_peak_per_rate if rate and share_of_peak_per_rate else None
        phases.append(
            {
                "global_batch_size": phase.batch_size,
                "num_updates": phase.num_updates,
                "images_per_second": rate,
                "share_of_peak": share,
                **run.compiled.get(str(phase.batch_size), {}),
            }
        )
    seconds = run.clock.by_name()
    return {
        "final": {
            "test_loss": evaluated[-1]["test_loss"],
            "test_accuracy": evaluated[-1]["test_accuracy"],
            "train_loss": rows[-1]["train_loss"],
        },
        "best_test_accuracy": max(row["test_accuracy"] for row in evaluated),
        "num_updates": run.schedule.num_updates,
        "examples_seen": run.schedule.end_examples,
        "num_epochs": run.schedule.recipe.num_epochs,
        "wall_seconds": run.clock.total(),
        "compile_seconds": seconds["compile"],
        "seconds": seconds,
        "phases": phases,
        "num_replaced_records": getattr(run.feed, "num_replaced", 0),
        "versions": environment.versions(),
        "devices": environment.devices(),
        "commit": environment.commit(),
        "command": environment.command(),
    }


def share_of_peak_per_rate(config: Config, mesh: Mesh) -> float | None:
    """What an image per second takes of the devices' peak; None if that is not known."""
    peak = peak_flops(mesh.devices.flat[0].device_kind, config.model.dtype)
    if peak is None:
        return None
    flops = training_flops(make_network(config), tuple(config.data.image_shape))
    return flops / (peak * mesh.size)


def build(
    config: Config, mesh: Mesh, momentum: float, feed: Feed, test_batch: Any
) -> tuple[TrainState, Programs]:
    """The initial state, and the programs that train and evaluate it."""
    model = make_network(config, parallel.AXIS_NAME)
    optimizer = make_optimizer(momentum=momentum, **config.optimizer.to_dict())
    state = create_state(model, optimizer, tuple(config.data.image_shape), config.seed)
    prepare = {
        split: make_prepare(
            config.data.augment if split == "train" else "none",
            mean=config.data.mean,
            std=config.data.std,
            seed=config.seed,
        )
        for split in ("train", "test")
    }
    limit = config.run.max_per_device_batch_size
    programs = Programs(
        model=model,
        optimizer=optimizer,
        prepare_train=prepare["train"],
        prepare_test=prepare["test"],
        label_smoothing=config.label_smoothing,
        state=state,
        feed=feed,
        test_batch=test_batch,
        mesh=mesh,
        ghost_batch_size=config.ghost_batch_size,
        max_per_device_batch_size=None if limit == "auto" else int(limit),
        updates_per_dispatch=config.run.updates_per_dispatch,
    )
    return state, programs


def _restore(checkpoints: Checkpoints, state: TrainState) -> tuple[int, TrainState, Notes]:
    """Position, state and notes of the newest checkpoint, or those of a new run."""
    restored = checkpoints.restore(state)
    return restored or (0, state, {"seconds": {}, "compiled": {}, "rows": []})


def _cadence(config: Config) -> Cadence:
    def examples(epochs: float) -> int:
        return max(1, round(epochs * config.data.num_train_examples))

    return Cadence(
        log=examples(config.log_every_epochs),
        evaluate=examples(config.evaluate_every_epochs),
        checkpoint=examples(config.run.checkpoint_every_epochs),
    )


def _final_metrics(summary: dict[str, Any]) -> dict[str, float]:
    """What TensorBoard compares runs by; it shows the first."""
    first = {"test_accuracy": summary["final"]["test_accuracy"]}
    others = ("num_updates", "wall_seconds", "compile_seconds")
    return first | {name: summary[name] for name in others} | summary["final"]


def _hyper_parameters(config: Config, num_updates: int) -> dict[str, Any]:
    """What a trajectory depends on, data aside, as TensorBoard takes it: numbers and strings.

    It sorts columns by name and shows five, hence the names of the first and of all others.
    """
    flat = trajectory_fields(json.loads(config.to_json()))
    return {
        "optimizer": config.optimizer.name,
        "plan": config.plan.name,
        "seed": config.seed,
        "updates": num_updates,
        "variant": config.variant,
    } | {
        f"with.{name}": value if isinstance(value, int | float | str) else str(value)
        for name, value in flat.items()
        if name.startswith(("ghost", "label", "model.", "optimizer.", "plan.", "recipe."))
    }
