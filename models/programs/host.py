"""Programs whose steps are Python functions: calls of a server, a verifier, a simulator, anything that JAX cannot trace.

They meet algorithms at the same protocol as all others. A particle is the number of a state in a table that only grows:
states are never copied, and selecting ancestors selects numbers.
"""

import asyncio
import concurrent.futures
import inspect
import math
import threading
from collections.abc import Awaitable, Callable, Hashable, Iterable, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array
from jax.core import Tracer
from jaxtyping import Bool, Float, Int, PRNGKeyArray

from posterity.ppl.answer import Answer, plain

WORKERS = 16  # calls under way at once, by default


class Turn(NamedTuple):
    """What a step of one particle has come to."""

    state: Any
    log_potential: float = 0.0  # nats
    ended: bool = False


Step = Turn | tuple | Awaitable[Turn | tuple]


class Table:
    """States by number. Compared by identity, as it grows."""

    def __init__(self):
        self.states: list[Any] = []

    def __len__(self) -> int:
        return len(self.states)

    def __getitem__(self, number: int) -> Any:
        return self.states[number]

    def keep(self, states: Iterable[Any]) -> range:
        """Adds states; their numbers."""
        before = len(self)
        self.states.extend(states)
        return range(before, len(self))


@struct.dataclass
class State(Answer):
    """States of a host program as queries see them: of one particle, or of many by leading axis."""

    number: Int[Array, "*n"]
    table: Table = struct.field(pytree_node=False)

    @property
    def state(self) -> Any:
        """The Python object itself, of one particle."""
        return self.table[int(self.number)]

    def answer(self) -> Hashable:
        state = self.state
        return state if isinstance(state, Hashable) and not isinstance(state, Answer) else plain(state)

    def __str__(self) -> str:
        return str(self.state)


class Particles(NamedTuple):
    """The particles of a host program."""

    number: Int[Array, " n"]  # of each particle's state in the table
    time: Int[Array, " n"]  # steps made
    ended: Bool[Array, " n"]


@jax.tree_util.register_static
class HostScan:
    """See `host_scan`."""

    hosted: ClassVar[bool] = True

    def __init__(self, step: Callable[[Any, int], Step], init: Any, length: int, workers: int):
        self.step_of_one, self.start, self.length, self.workers = step, init, length, workers
        self.table = Table()

    def __repr__(self) -> str:
        return f"<program {getattr(self.step_of_one, '__name__', type(self.step_of_one).__name__)}, on the host>"

    def init(self, key: PRNGKeyArray, n: int) -> tuple[Particles, Float[Array, " n"]]:
        (number,) = self.table.keep([self.start])
        return Particles(jnp.full(n, number, jnp.int32), jnp.zeros(n, jnp.int32), jnp.full(n, self.length == 0)), jnp.zeros(n)

    def step(self, key: PRNGKeyArray, particles: Particles, *, where: Bool[Array, " n"] | None = None) -> tuple[Particles, Float[Array, " n"]]:
        if isinstance(particles.number, Tracer):
            raise TypeError(f"{self} runs in Python: it cannot be part of compiled code (jax.jit, vmap, an exact policy)")
        active = np.flatnonzero(np.asarray(~particles.ended if where is None else ~particles.ended & where)).tolist()
        number, ended = np.array(particles.number), np.array(particles.ended)
        seeds = np.asarray(jax.random.bits(key, number.shape)).tolist()
        calls = [(self.table[number[i]], seeds[i]) for i in active]
        turns = [_turn(self, i, found) for i, found in zip(active, in_parallel(self.step_of_one, calls, self.workers), strict=True)]
        number[active] = self.table.keep(turn.state for turn in turns)
        time = np.array(particles.time)
        time[active] += 1
        ended[active] = [turn.ended for turn in turns]
        log_potential = np.zeros(number.shape, float)
        log_potential[active] = [turn.log_potential for turn in turns]
        return Particles(jnp.asarray(number), jnp.asarray(time), jnp.asarray(ended | (time >= self.length))), jnp.asarray(log_potential, float)

    def select(self, particles: Particles, ancestors: Int[Array, " m"]) -> Particles:
        return jax.tree.map(lambda x: x[ancestors], particles)

    def done(self, particles: Particles) -> Bool[Array, " n"]:
        return particles.ended

    def value(self, particles: Particles) -> State:
        return State(particles.number, self.table)


def host_scan(step: Callable[[Any, int], Step], init: Any, *, length: int, workers: int = WORKERS) -> HostScan:
    """A program whose steps are a Python function: `step(state, seed)` gives the next state, its log potential, and whether the particle has ended.

    Every algorithm takes it (`po.smc`, `po.importance`, under `po.chunk`, `po.twist`, ..): the same code runs, in Python instead of
    compiled. The steps of all particles are called at once, up to `workers` at a time: a coroutine function's in one event loop,
    another's in threads.

    Args:
      step: from a state (any Python object, not to be changed in place) and a seed (a whole number below 2^32, another for every
        particle and step; the same key gives the same ones) to a `Turn`, or as many of its fields: a tuple (state, log potential
        in nats, whether it ended). -inf forbids.
      init: the first state of every particle.
      length: the largest number of steps.
      workers: how many calls may be under way at once.

    Returns:
      A program. Its values are `State`s: `posterior.answers()` counts states, `posterior.answers(lambda value: f(value.state))` what
      f makes of them.

    Raises:
      TypeError: when `step` cannot be called.
      ValueError: on a negative length or fewer than one worker. What `step` raises ends the run, with a note of which particle it was.

    >>> import jax, math, random
    >>> import posterity as po
    >>> def throw(total, seed):
    ...     die = random.Random(seed).randint(1, 6)
    ...     return total + die, 0.0 if die > 1 else -math.inf
    >>> posterior = po.smc(jax.random.key(0), po.host_scan(throw, 0, length=2), n=200)
    >>> min(posterior.answers()) >= 4
    True
    """
    if not callable(step):
        raise TypeError(f"host_scan: step must be a function of a state and a seed, got {step!r}")
    for name, number, least in (("length", length, 0), ("workers", workers, 1)):
        if not isinstance(number, int) or isinstance(number, bool) or number < least:
            raise ValueError(f"host_scan: {name} must be a whole number of at least {least}, got {number!r}")
    return HostScan(step, init, length, workers)


def in_parallel(function: Callable, calls: Sequence[tuple], workers: int) -> list:
    """`function(*call)` of every call, in their order, up to `workers` at once; the first that raises ends the others, and says which it was.

    Coroutines run in an event loop of a thread of their own, so that it works where one is running already (a notebook).
    """
    if not calls:
        return []
    if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None)):  # noqa: B004 - of an instance
        return _in_event_loop(lambda: _gathered(function, calls, workers))
    with concurrent.futures.ThreadPoolExecutor(min(workers, len(calls))) as pool:
        futures = [pool.submit(_noted, function, i, call) for i, call in enumerate(calls)]
        try:
            return [future.result() for future in futures]
        except BaseException:
            for future in futures:
                future.cancel()
            raise


def _noted(function: Callable, i: int, call: tuple) -> Any:
    try:
        return function(*call)
    except Exception as error:
        error.add_note(f"in call {i} of a step on the host")
        raise


async def _gathered(function: Callable, calls: Sequence[tuple], workers: int) -> list:
    limit = asyncio.Semaphore(workers)

    async def one(i: int, call: tuple) -> Any:
        async with limit:
            try:
                return await function(*call)
            except Exception as error:
                error.add_note(f"in call {i} of a step on the host")
                raise

    tasks = [asyncio.ensure_future(one(i, call)) for i, call in enumerate(calls)]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _in_event_loop(start: Callable[[], Any]) -> Any:
    """The result of the coroutine that `start()` makes, run in a thread of its own; an interrupt here cancels it there."""
    outcome: concurrent.futures.Future = concurrent.futures.Future()
    running: list[tuple[asyncio.AbstractEventLoop, asyncio.Task]] = []

    async def main() -> Any:
        task = asyncio.current_task()
        assert task is not None
        running.append((asyncio.get_running_loop(), task))
        return await start()

    def run() -> None:
        try:
            outcome.set_result(asyncio.run(main()))
        except BaseException as error:
            outcome.set_exception(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        return outcome.result()
    except BaseException:
        for loop, task in running:
            if thread.is_alive() and not loop.is_closed():
                loop.call_soon_threadsafe(task.cancel)
        raise
    finally:
        thread.join()


def _turn(program: HostScan, i: int, found: Any) -> Turn:
    if not isinstance(found, tuple) or not 1 <= len(found) <= 3:
        raise TypeError(f"{program}: a step must return (state, log potential, whether it ended), the last two if need be; particle {i}'s returned {found!r}")
    turn = found if isinstance(found, Turn) else Turn(*found)
    log_potential = float(turn.log_potential)
    return turn._replace(log_potential=math.nan if log_potential == math.inf else log_potential, ended=bool(turn.ended))
