"""Is an evidence right? Bounds from both sides: what an inference finds, and what particle filters find around draws of the posterior."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Float, PRNGKeyArray
from numpyro import handlers
from numpyro.diagnostics import effective_sample_size

from posterity.inference.blocks import Kernel, run
from posterity.inference.drive import check_counts, check_key
from posterity.inference.mcmc.parameters import Choices, begin
from posterity.inference.queries import Estimate, Weighted
from posterity.inference.recorded import Recorded, Trajectory, recorded
from posterity.inference.smc import conditional
from posterity.inference.smc.backward import by_weight
from posterity.inference.smc.resampling import CONDITIONAL
from posterity.inference.smc.smc import smc
from posterity.inference.validation.bridge import annealed, as_trajectory, brought_down
from posterity.inference.validation.forward import observing, simulate
from posterity.ppl.effects import draw
from posterity.ppl.program import FunctionProgram, Program
from posterity.ppl.region import of_function


class Bounds(NamedTuple):
    """Stochastic bounds on a log evidence, nats. True when they do not contradict each other: the lower is above the upper by three errors at most."""

    lower: Estimate  # mean of `forward`: not above the log evidence, on average
    upper: Estimate  # mean of `backward`: not below it, on average, when the draws of the posterior are such
    forward: Float[np.ndarray, " runs"]  # log evidence estimates of the method, independent
    backward: Float[np.ndarray, " runs"]  # of particle filters around draws of the posterior

    @property
    def gap(self) -> Estimate:
        """Upper less lower: where one filter makes both, the divergences of its law from its target and back, summed (Jeffreys), which bounds either."""
        return Estimate(self.upper.value - self.lower.value, math.hypot(self.lower.error, self.upper.error))

    def __bool__(self) -> bool:
        return self.gap.value >= -3 * self.gap.error

    def __str__(self) -> str:
        sides = f"{self.lower.value:.4g} ± {self.lower.error:.2g} <= log evidence <= {self.upper.value:.4g} ± {self.upper.error:.2g}"
        return f"{sides} ({len(self.forward)} and {len(self.backward)} runs)" + ("" if self else ": CONTRADICTION")

    __repr__ = __str__


def evidence(
    program: Any,
    method: Callable[[Array, Any], Any] | None = None,
    *,
    key: PRNGKeyArray,
    n: int = 100,
    runs: int = 32,
    simulated: bool = False,
    posterior: Weighted | None = None,
    warmup: int = 20,
    ladder: Any = None,
    kernel: Kernel | None = None,
    moves: int = 5,
) -> Bounds:
    """Bounds on a program's log evidence from both sides (bidirectional Monte Carlo): the cross-check of SMC by MCMC.

    From below: an unbiased estimate of the evidence has a logarithm that is too low on average. From above: a particle filter of which one particle
    follows a draw of the posterior (conditional SMC) estimates the evidence such that one over it is unbiased, so that its logarithm is too high.
    With `simulated` data there is an exact draw, the one that the data come from, and conditional SMC goes on from it: the bounds
    then hold for certain. On the program's own data they hold as far as its chain, or the `posterior` given, has come to the posterior.

    A static program is filtered along a ladder of powers of its likelihood, moved by a reversible kernel (annealed importance sampling, as a program):
    a draw of the posterior is brought down the ladder by the same kernel, backwards.

    Args:
      program: one made by `@po.program`, static or not; with `simulated`, whose potentials are all observations.
      method: `method(key, program)` to what has a `log_evidence`, properly weighted; the filter itself by default.
      key: a `jax.random.key`.
      n: the number of particles of the filters, at least 2.
      runs: how many of the method, and of filters around draws.
      simulated: whether the program's data are replaced by simulated ones.
      posterior: of a static program, without `simulated`: draws with their `choices` by name, by MCMC say; each filter then starts from one of these.
      warmup: without `simulated`, how many moves of the chain of conditional SMCs are made before they count.
      ladder, kernel, moves: of a static program: exponents as in `tempering`, by default those that a pilot run finds; a kernel of `po.kernels` that
        is reversible and learns nothing, by default a random walk whose covariance goes with the exponent from the prior's to the posterior's, as the pilot
        finds them, and `uniform` on finite choices; and how often it moves at each exponent.

    Raises:
      TypeError: when the program is not made of a function.
      ValueError: on counts out of range, a ladder that does not rise to 1, or a `posterior` that goes with nothing, or has no choices.

    Source: Grosse, Ghahramani and Adams (2015), "Sandwiching the marginal likelihood using bidirectional Monte Carlo"; Grosse, Ancha and Roy (2016); Andrieu,
    Doucet and Holenstein (2010) for conditional SMC.

    >>> import jax, jax.numpy as jnp, numpyro.distributions as dist, posterity as po
    >>> @po.program
    ... def walk(ys):
    ...     def step(x, y):
    ...         x = po.sample("x", dist.Normal(x, 1.0))
    ...         po.observe("y", dist.Normal(x, 0.5), y)
    ...         return x
    ...     return po.scan(step, 0.0, ys)
    >>> bounds = po.check.evidence(walk(jnp.array([1.0, 2.0, 3.0])), key=jax.random.key(0), n=200)  # -4.6205 by the Kalman filter
    >>> bool(bounds), bounds.lower.value - 0.1 < -4.62 < bounds.upper.value + 0.1
    (True, True)
    """
    check_key(key)
    check_counts(n=(n, 2), runs=(runs, 4), warmup=(warmup, 0), moves=(moves, 1))
    program = of_function("evidence", program)
    if posterior is not None and (simulated or program.length or not posterior.choices):
        raise ValueError("evidence: posterior must have choices by name, and goes with static programs on their own data alone")
    simulate_key, ladder_key, draw_key, start_key, forward_key, backward_key = jax.random.split(key, 6)
    truth = None
    if simulated:
        truth = simulate(simulate_key, program, 1)
        program = observing(program, jax.tree.map(lambda x: x[0], truth.data))
    filtered: Any = program
    if not program.length:
        filtered, draws = annealed(ladder_key, program, ladder, kernel, moves)
        choices = truth.choices if truth else _some(draw_key, draws if posterior is None else posterior, runs)
        paths = brought_down(start_key, filtered, choices)
    else:
        paths = jax.tree.map(lambda x: x[None], replayed(program, truth.choices, truth.drawn) if truth else _fresh(start_key, program))
    warmup = 0 if truth or not program.length else warmup
    starts = jax.tree.leaves(paths)[0].shape[0]
    around = _around(jax.random.split(backward_key, starts), recorded(filtered), paths, n, warmup + runs // starts)[:, warmup:]
    if method is None:
        forward = _forward(jax.random.split(forward_key, runs), filtered, n)
    else:
        forward = jnp.stack([jnp.asarray(method(one, program).log_evidence) for one in jax.random.split(forward_key, runs)])
    below, above = np.asarray(forward, float), np.asarray(around, float)
    return Bounds(_mean(below[:, None]), _mean(above), below, above.reshape(-1))


def replayed(program: FunctionProgram, choices: dict[str, Any], drawn: dict[str, Any]) -> Trajectory:
    """The trajectory (a batch of one) of a program's choices, [1, ...] in its initial law and [1, steps, ...] in its steps."""
    idle = jax.random.key(0)  # nothing is left to draw
    now, log_potential = begin(program, choices) if choices else program.init(idle, 1)

    def step(now: Any, chosen: dict[str, Any]) -> tuple[Any, tuple]:
        after, more, *_ = program.told(idle, now, jax.tree.map(lambda x: x[None], chosen))
        return after, (after, more, ~program.done(now))

    with handlers.block():
        last, (after, more, made) = lax.scan(step, now, jax.tree.map(lambda x: x[0], drawn), length=program.length)
    states = jax.tree.map(lambda x, rows: jnp.concatenate([x[None], rows]), now, after)
    log_potentials = jnp.concatenate([log_potential[None], more])
    return as_trajectory(last, states, log_potentials, jnp.sum(made, axis=0, dtype=jnp.int32))


def _fresh(key: Array, program: FunctionProgram) -> Trajectory:
    """A trajectory (a batch of one) of the prior, which need not be allowed: the filter around it finds others."""
    init_key, run_key = jax.random.split(key)
    kept = recorded(program)
    return run(run_key, kept, kept.init(init_key, 1)[0], program.length)


@functools.partial(jax.jit, static_argnames="n")
def _forward(keys: Array, program: Program, n: int) -> Float[Array, " runs"]:
    return lax.map(lambda key: smc(key, program, n=n, history=False).log_evidence, keys)


@functools.partial(jax.jit, static_argnames=("n", "length"))
def _around(keys: Array, program: Recorded, paths: Trajectory, n: int, length: int) -> Float[Array, "starts length"]:
    """Log evidence of each filter in chains of conditional SMCs from some trajectories, [starts, 1, ...]."""

    def turn(path: Trajectory, key: Array) -> tuple[Trajectory, Array]:
        around_key, draw_key = jax.random.split(key)
        cloud = conditional.around(around_key, program, path, n, "trace", CONDITIONAL["systematic"])
        after, _ = conditional.traced(draw(draw_key, "chosen", by_weight(cloud.now.log_weights)), cloud)
        return after, conditional.log_evidence(cloud)

    return lax.map(lambda start: lax.scan(turn, start[1], jax.random.split(start[0], length))[1], (keys, paths))


def _some(key: Array, posterior: Weighted, n: int) -> Choices:
    """The choices of n draws."""
    return jax.tree.map(jnp.asarray, dataclasses.replace(posterior, values=dict(posterior.choices)).sample(key, n))  # pyright: ignore[reportArgumentType]


def _mean(x: Float[np.ndarray, "chains draws"]) -> Estimate:
    """The mean of independent chains, whose autocorrelation counts, with its standard error."""
    found = float(effective_sample_size(x)) if x.shape[1] >= 4 and np.ptp(x) > 0 else x.size
    independent = min(max(found, 1.0), x.size) if found > 0 else x.size  # chains that alternate are worth more than independent draws
    return Estimate(float(x.mean()), float(x.std(ddof=1) / math.sqrt(independent)))
