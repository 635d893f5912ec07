"""The experiments: `python -m experiments.NAME`."""
