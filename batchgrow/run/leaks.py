"""Prevents a memory leak of TensorStore in checkpoints."""

import contextlib
from collections.abc import Iterator
from typing import Any

import tensorstore


@contextlib.contextmanager
def without_metrics() -> Iterator[None]:
    """In the context Orbax gets no metrics of TensorStore, which it only logs.

    It collects them three times at each save, and TensorStore 0.1.86 never frees the lists that it
    returns: 5 KB each time. `python -m experiments.bench_slopes` shows what a process keeps.
    """
    module: Any = tensorstore
    collect = module.experimental_collect_matching_metrics
    module.experimental_collect_matching_metrics = lambda *_, **__: []
    try:
        yield
    finally:
        module.experimental_collect_matching_metrics = collect
