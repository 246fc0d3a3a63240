"""Seconds that a run took, and those of them in which nothing was compiled."""

import time
from typing import Self

import jax

_TRACED = "/jax/core/compile/"  # the events of tracing, lowering and compiling
_running: list["Stopwatch"] = []


class Stopwatch:
    """Times a block: `wall` seconds in all, `device` without those in which JAX traced and compiled. Read after the block; they nest.

    What runs in the block must be waited for there (`jax.block_until_ready`).

    >>> with Stopwatch() as watch:
    ...     _ = jax.block_until_ready(jax.jit(lambda x: x + 1)(1.0))
    >>> 0 < watch.device < watch.wall
    True
    """

    def __enter__(self) -> Self:
        self.start, self.compiled = time.perf_counter(), []
        _running.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        self.wall = time.perf_counter() - self.start
        _running.remove(self)
        covered, end = 0.0, self.start
        for begin, finish in sorted(self.compiled):  # one compilation traces others: their times overlap
            covered, end = covered + max(0.0, finish - max(begin, end)), max(end, finish)
        self.device = max(self.wall - covered, 0.0)

    @property
    def elapsed(self) -> float:
        """Seconds since the block began."""
        return time.perf_counter() - self.start


def _note(event: str, duration_secs: float, **kwargs: object) -> None:
    if event.startswith(_TRACED):
        now = time.perf_counter()
        for watch in _running:
            watch.compiled.append((now - duration_secs, now))


jax.monitoring.register_event_duration_secs_listener(_note)
