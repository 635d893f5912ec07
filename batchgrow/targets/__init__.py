"""Compiles the updates of a run for machines that are not here, and reads what they need."""
