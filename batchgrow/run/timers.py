"""Names of the timers of a run. Standard library only, so that reports can import it."""

TIMERS = ("compile", "input", "noise", "eval", "checkpoint")
# The parts of a run's wall time, in the order of tables; "step" is what no timer counts.
PARTS = ("compile", "input", "step", "noise", "eval", "checkpoint")
# Nothing is trained during these, so throughput does not count them.
PAUSES = ("compile", "noise", "eval", "checkpoint")
# Columns that differ between two runs of the same trajectory.
TIMING = (
    "examples_per_second",
    "input_share",
    "wall_seconds",
    *(f"{name}_seconds" for name in TIMERS),
)
