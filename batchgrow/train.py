"""Training: the one loop that all experiments share."""

from collections.abc import Callable
from contextlib import ExitStack

from batchgrow import kernels, layout
from batchgrow.compile import enable_compilation_cache
from batchgrow.engine import Engine
from batchgrow.experiment import Experiment, NonFiniteLoss, Outcome
from batchgrow.plan import Point
from batchgrow.run.run import Run
from batchgrow.step import TrainState

__all__ = ["NonFiniteLoss", "Outcome", "train"]

# Called after each dispatch with its last update and the state after it. True stops the run.
Watch = Callable[[Point, TrainState], bool]


def train(
    experiment: Experiment,
    workdir: str,
    *,
    override_config: bool = False,
    watch: Watch = lambda point, state: False,
) -> Outcome:
    """Trains an experiment, from the last checkpoint in `workdir` if there is one.

    The order of one round of the loop is fixed. It dispatches updates. Then, where due, it
    evaluates, writes a row and saves a checkpoint. Then it stops if it was asked to. The rows that
    belong to a checkpoint are therefore always written before it.

    Args:
      experiment: what to train, for example the result of `config.make_experiment`.
      workdir: the run folder. It is created if it does not exist.
      override_config: whether to continue if fields under `run` or the data differ from those of
        the folder.
      watch: called after each dispatch with its last update and the state after it, which the next
        dispatch consumes. If it returns True, the run stops as if it had received SIGTERM. With
        several processes it must return the same on all of them.

    Raises:
      ValueError: for a batch that cannot be laid out on the devices.
      FolderError: if the folder cannot be used.
      NonFiniteLoss: if training diverges.
      RuntimeError: for an example that cannot be read.
      MemoryError: if a device is too small for one ghost batch.
      OSError: if the run folder cannot be written any more.
    """
    mesh = layout.make_mesh(experiment.execution.num_devices)
    kernels.check(experiment.execution.cpu_kernels, mesh)
    with ExitStack() as stack:
        run = stack.enter_context(Run(experiment, workdir, mesh, override_config=override_config))
        if run.is_finished:
            return Outcome.FINISHED
        cache = enable_compilation_cache(experiment.execution.compilation_cache_dir)
        engine = stack.enter_context(Engine(experiment, mesh))
        restored = run.restore(engine.state)
        for batch_size in run.position.batch_sizes():
            engine.compiler.layouts(batch_size)  # Raises before anything is compiled or written.
        state = restored or engine.initial_state()
        run.begin()
        run.choose_kernels(engine, kernels.Memory(cache))

        while segment := run.next_segment():  # Here the batch grows.
            with run.waiting_for(segment.batch_size, engine.updates):
                update = engine.updates.start(segment.batch_size).result()
            run.check_fit(f"the layout of batch size {segment.batch_size}", update.layout)
            for points in run.position.dispatches(update.max_updates):
                with run.input_timer(state):
                    batches = engine.feed.batch(update.dispatch_positions(points))
                state = update(state, batches, points)
                run.advance(points)
                engine.prepare(segment.batch_size, run.position.batch_sizes())
                engine.read_ahead(run.position.known(), run.position.examples_seen)

                due = run.measure(engine, state)
                test = run.evaluate(engine, state) if due.evaluation else {}
                if due.row:
                    state = run.write_row(state, points[-1], test)
                stop = run.reason_to_stop(watch(points[-1], state))
                if due.checkpoint or stop:
                    run.save(engine, state, points[-1], test)
                if stop:
                    return run.stop(stop)
        return run.finish(engine)
