"""Particle marginal Metropolis-Hastings (Andrieu, Doucet and Holenstein 2010): a chain on parameters whose likelihood SMC estimates."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array
from jax.tree_util import Partial

from posterity.inference.blocks import Moved, run
from posterity.inference.checkpoint import Checkpoint
from posterity.inference.mcmc.chain import Chain, chain
from posterity.inference.mcmc.metropolis import accept
from posterity.inference.smc.nested import Nested, NestedParticles, choose, nested
from posterity.inference.smc.resampling import Ancestors
from posterity.ppl.effects import draw, particle_map
from posterity.ppl.program import Program
from posterity.ppl.transform import times


class Proposal(NamedTuple):
    """Where new parameters come from: q(. | parameters), and the prior that they are judged by."""

    prior: dist.Distribution
    conditional: Callable[[Any], dist.Distribution]  # a `jax.tree_util.Partial`


def move(
    key: Array, program: Nested, particles: NestedParticles, *, proposal: Proposal | None = None, time: Array | int | None = None
) -> tuple[NestedParticles, Moved]:
    """One PMMH transition of every particle: new parameters, a fresh inner SMC of `time` steps (by default to the end), accept or stay.

    Accepts theta' with its estimate Z' with probability min(1, p(theta') Z' q(theta | theta') / (p(theta) Z q(theta' | theta))); without a
    proposal theta' is drawn from the prior, and that is min(1, Z' / Z). Leaves the law of (theta, Z, x) weighed by Z invariant, of which
    the posterior of (theta, x) is a marginal.
    """
    propose_key, run_key, accept_key = jax.random.split(key, 3)
    if proposal is None:
        none = jnp.zeros_like(particles.log_weights)
        (fresh, _), log_prior, log_new_prior, log_factor = program.init(propose_key, particles.time.shape[0]), none, none, none
    else:
        fresh, log_prior, log_new_prior, log_factor = _propose(propose_key, program, particles.parameters, proposal)
    fresh = run(run_key, program, fresh, program.length if time is None else time)
    moved = accept(accept_key, times(log_new_prior, fresh.log_weights), times(log_prior, particles.log_weights), log_factor)
    return choose(moved.accepted, fresh, particles), moved


def _propose(key: Array, program: Nested, parameters: Array, proposal: Proposal) -> tuple[NestedParticles, Array, Array, Array]:
    """Fresh particles at proposed parameters; the log prior density of the old and of the new parameters, and log q(old | new) - log q(new | old)."""
    draw_key, spawn_key = jax.random.split(key)

    def one(key, old):
        there = proposal.conditional(old)
        new = draw(key, "proposal", there)
        back = proposal.conditional(new)
        return new, log_density(proposal.prior, old), log_density(proposal.prior, new), log_density(back, old) - log_density(there, new)

    n = parameters.shape[0]
    new, log_prior, log_new_prior, log_factor = particle_map(one, (0, 0), (0, 0, 0, 0))(jax.random.split(draw_key, n), parameters)
    return program.at(spawn_key, new, jnp.zeros(n)), log_prior, log_new_prior, log_factor


def log_density(distribution: dist.Distribution, value: Array) -> Array:
    """The joint log density [], nats; -inf outside the support, where NumPyro's may be anything."""
    inside = jnp.all(jnp.asarray(distribution.support(value)))  # pyright: ignore[reportOptionalCall] - every distribution has one
    return jnp.where(inside, jnp.sum(distribution.log_prob(value)), -jnp.inf)


def pmmh(
    key: Array,
    parameters: Program | dist.Distribution,
    model: Callable[[Any], Program],
    *,
    n: int,
    draws: int,
    warmup: int = 0,
    chains: int = 1,
    thinning: int = 1,
    proposal: Callable[[Any], dist.Distribution] | None = None,
    resampling: str | type[Ancestors] = "systematic",
    threshold: float = 0.5,
    progress: bool = False,
    checkpoint: Checkpoint | None = None,
) -> Chain:
    """The posterior of parameters and of a model's value under them, by Metropolis-Hastings on SMC's estimates of the likelihood.

    The chain leaves the posterior of (parameters, value) invariant for every number of inner particles `n`: the estimates' noise
    costs acceptance, not correctness. `n` such that the log estimate varies by about 1.2 nats is a good choice (Doucet et al. 2015).

    Args:
      key: a `jax.random.key`.
      parameters: their prior, a NumPyro distribution; without `proposal` also a program without steps.
      model: from parameters to a program, as for `nested`.
      n: the number of inner particles.
      draws: how many states of each chain to keep.
      warmup: moves before them; a chain begins with a draw of the prior.
      chains: how many, all moved in one batch.
      thinning: of so many moves the last one's state is kept.
      proposal: q(. | parameters), from parameters to a NumPyro distribution over them; by default the prior. As for `model`,
        data in a `jax.tree_util.Partial` are arguments of the compiled code.
      resampling: of the inner SMC, as in `smc`.
      threshold: of the inner SMC, as in `smc`.
      progress, checkpoint: as in `smc`; a move of the chain is a step.

    Returns:
      A `Chain` of `Draw`s (`parameters`, `value`).

    Raises:
      TypeError: when `parameters` or `model` is none of these, or `proposal` is given and `parameters` is no distribution.
      ValueError: when n or draws is less than 1, warmup less than 0, or a potential is NaN or +inf.

    >>> import jax, numpyro.distributions as dist, posterity as po
    >>> @po.program
    ... def flips(bias):
    ...     def step(heads, _):
    ...         head = po.sample("head", dist.Bernoulli(bias))
    ...         po.factor("two in a row", jax.numpy.where(head, 0.0, -jax.numpy.inf))
    ...         return heads + head
    ...     return po.scan(step, 0, length=2)
    >>> posterior = po.pmmh(jax.random.key(0), dist.Uniform(0.0, 1.0), flips, n=8, draws=2_000)  # of a bias after two heads: Beta(3, 1)
    >>> bool(abs(posterior.expect(lambda draw: draw.parameters) - 0.75) < 0.05)
    True
    """
    program = nested(parameters, model, n=n, resampling=resampling, threshold=threshold)
    start, step, read = Partial(_start(chains), program), Partial(_step, program, proposes(parameters, proposal)), Partial(_read, program)
    counts = {"draws": draws, "warmup": warmup, "chains": chains, "thinning": thinning}
    return chain(key, program, start, step, read, **counts, progress=progress, checkpoint=checkpoint)


@functools.cache
def _start(chains: int) -> Callable:
    """One object for each number of chains: jit knows compiled code again by it."""

    def start(program: Nested, init_key: Array, run_key: Array) -> NestedParticles:
        return run(run_key, program, program.init(init_key, chains)[0], program.length)

    return start


def _step(program: Nested, proposal: Proposal | None, key: Array, particles: NestedParticles) -> tuple[NestedParticles, Moved]:
    return move(key, program, particles, proposal=proposal)


def _read(program: Nested, particles: NestedParticles) -> tuple[Any, Array]:
    return program.value(particles), particles.log_weights > -jnp.inf


def proposes(parameters: Program | dist.Distribution, proposal: Callable[[Any], dist.Distribution] | None) -> Proposal | None:
    """The proposal with the prior that it needs, checked."""
    if proposal is None:
        return None
    if not isinstance(parameters, dist.Distribution):
        raise TypeError(f"a proposal needs the prior's density: parameters must be a NumPyro distribution then, got {type(parameters).__name__}")
    if not callable(proposal):
        raise TypeError(f"proposal must be a function from parameters to a NumPyro distribution, got {type(proposal).__name__}")
    return Proposal(parameters, proposal if isinstance(proposal, jax.tree_util.Partial) else jax.tree_util.Partial(proposal))
