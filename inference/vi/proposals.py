"""Proposals with parameters, fitted to simulated programs or to the bound that a particle filter gives; for `po.propose`."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
import optax
from jax import Array, lax
from jax.tree_util import Partial
from jaxtyping import Float, PRNGKeyArray

from posterity.inference import blocks
from posterity.inference.drive import check_counts, check_key
from posterity.inference.mcmc.parameters import log_prior
from posterity.inference.population import Population, normalise
from posterity.inference.smc.resampling import Systematic
from posterity.inference.vi.dream import dream
from posterity.inference.vi.train import check_optimizer, descent, train
from posterity.ppl.effects import draw
from posterity.ppl.program import FunctionProgram
from posterity.ppl.propose import propose
from posterity.ppl.region import of_function

DATA = ("dreamt", "given")
Proposals = Mapping[str, Callable[..., dist.Distribution]]


class LearnedProposals(NamedTuple):
    """Proposals: `po.propose(program, learned.proposals)`."""

    proposals: dict[str, Partial]  # their parameters are leaves
    parameters: Any
    losses: Float[Array, " steps"]  # nats


def proposals(
    key: PRNGKeyArray,
    program: FunctionProgram,
    proposals: Proposals,
    parameters: Any,
    *,
    data: Literal["dreamt", "given"] = "dreamt",
    n: int = 64,
    steps: int = 500,
    optimizer: optax.GradientTransformation | None = None,
) -> LearnedProposals:
    """Proposals fitted to simulated programs: in each step of the fit n runs with data of their own are dreamt, and q made likelier to have drawn them.

    The sleep phase of wake-sleep, which minimises the mean over data of KL(p(choices | data) || q), the divergence in which a proposal covers what it
    is to propose. So it is learned once for all data of this shape. With `data="given"` it is KL(posterior || q) of the data that the program has, the
    posterior being that of a filter of n particles by the proposals so far, factors included. `po.propose` keeps the meaning whatever was
    learned, where q is positive wherever p is.

    Args:
      key: a `jax.random.key`.
      program: one made by `@po.program`. Its data, which are dreamt anew, must reach `po.observe` as they are given to the scan (its xs) or to the
        program, entry by entry of a dict or tuple. Factors cannot be dreamt, and are left out.
      proposals: for each choice q(parameters, carry, x) for one of the scan's step, q(parameters, *arguments of the program) for one of the initial
        law, to a NumPyro distribution.
      parameters: where the fit begins, a pytree of float arrays that all proposals read.
      data: "dreamt" or "given". Only what is dreamt has to reach `po.observe` as told above.
      n: programs simulated, or particles, for each gradient.
      steps: steps of the optimiser.
      optimizer: any of optax; by default Adam from 0.05 down to 0.

    Raises:
      TypeError: when `program` is not made of a function, a proposal cannot be called, or `optimizer` is none of optax.
      ValueError: on counts below 1, names that are no choices of the program, observations of something else than its data, a proposal that gives what
        the program draws no probability, or a loss that became NaN or infinite.

    Source: Hinton, Dayan, Frey and Neal (1995); Le, Baydin and Wood (2017), inference compilation; for given data Gu, Ghahramani and Turner (2015).

    >>> import jax, jax.numpy as jnp, numpyro.distributions as dist, posterity as po
    >>> @po.program
    ... def walk(ys):
    ...     def step(x, y):
    ...         x = po.sample("x", dist.Normal(x, 1.0))
    ...         po.observe("y", dist.Normal(x, 0.1), y)
    ...         return x
    ...     return po.scan(step, 0.0, ys)
    >>> def towards(parameters, x, y):
    ...     return dist.Normal(x + parameters["gain"] * (y - x), jnp.exp(parameters["log_scale"]))
    >>> start = {"gain": jnp.array(0.0), "log_scale": jnp.array(0.0)}
    >>> learned = po.learn.proposals(jax.random.key(0), walk(jnp.zeros(5)), {"x": towards}, start)
    >>> round(float(learned.parameters["gain"]), 1), round(float(jnp.exp(learned.parameters["log_scale"])), 1)
    (1.0, 0.1)
    """
    program, given = _checked("learn.proposals", key, program, proposals, n, steps)
    if data not in DATA:
        raise ValueError(f"learn.proposals: data must be one of {', '.join(map(repr, DATA))}, got {data!r}")
    loss = Partial(_surprise(n) if data == "dreamt" else _posterior_surprise(n), program, given)
    return _learned("learn.proposals", key, loss, given, parameters, steps, optimizer)


def filtering(
    key: PRNGKeyArray,
    program: FunctionProgram,
    proposals: Proposals,
    parameters: Any,
    *,
    n: int = 16,
    steps: int = 500,
    optimizer: optax.GradientTransformation | None = None,
) -> LearnedProposals:
    """Proposals fitted to the data that the program has, by raising E[log Z-hat] of a particle filter of n particles: variational SMC.

    The mean of the log estimate is a lower bound of the log evidence, and the closer the proposals are to optimal for a filter, the higher it is.
    `losses` are minus its estimates. The gradient goes through the particles' draws (reparametrised) and weights, and not through which ancestors
    were drawn: it is biased, as without that term its variance would be of no use. What is learned may so be a little off the bound's optimum;
    `po.propose` keeps the meaning all the same.

    Args:
      program: one made by `@po.program`; the choices named are continuous.
      n: particles of the filter, which resamples before each step.
      key, proposals, parameters, steps, optimizer: as in `proposals`.

    Raises:
      TypeError: as `proposals`.
      ValueError: as `proposals`; for a choice whose proposal has no reparametrised draws, a discrete one say (those `proposals` can learn).

    Source: Naesseth, Linderman, Ranganath and Blei (2018); Maddison et al. (2017); Le et al. (2018).
    """
    program, given = _checked("learn.filtering", key, program, proposals, n, steps)
    loss = Partial(_minus_bound(n), program, given)
    return _learned("learn.filtering", key, loss, given, parameters, steps, optimizer)


def _checked(caller: str, key: Any, program: Any, proposals: Proposals, n: int, steps: int) -> tuple[FunctionProgram, dict[str, Any]]:
    check_key(key)
    check_counts(n=(n, 1), steps=(steps, 1))
    if not isinstance(proposals, Mapping) or not proposals:
        raise ValueError(f"{caller}: proposals must be a mapping from names of choices to functions, got {proposals!r}")
    for name, proposal in proposals.items():
        if not callable(proposal) or isinstance(proposal, dist.Distribution):
            raise TypeError(
                f"{caller}: the proposal of {name!r} must be a function of the parameters and more to a distribution, got {type(proposal).__name__}"
            )
    as_tree = {name: Partial(q) if jax.tree_util.all_leaves([q]) else q for name, q in proposals.items()}
    return of_function(caller, program), as_tree


def _learned(
    caller: str, key: Array, loss: Partial, given: dict[str, Partial], parameters: Any, steps: int, optimizer: optax.GradientTransformation | None
) -> LearnedProposals:
    optimizer = check_optimizer(caller, optimizer) or descent(steps)
    trained = train(caller, key, loss, jax.tree.map(jnp.asarray, parameters), optimizer=optimizer, steps=steps)
    return LearnedProposals(bound_to(given, trained.parameters), trained.parameters, trained.losses)


def bound_to(given: Mapping[str, Callable], parameters: Any) -> dict[str, Partial]:
    """Proposals with these parameters, as `po.propose` takes them."""
    return {name: Partial(_at, q, parameters) for name, q in given.items()}


def _at(q: Callable, parameters: Any, *args: Any, **options: Any) -> dist.Distribution:
    return q(parameters, *args, **options)


# Of each number of particles one function object: jit knows compiled code again by it.
@functools.cache
def _surprise(n: int) -> Callable:
    def surprise(program: FunctionProgram, given: dict[str, Partial], key: Array, parameters: Any) -> Array:
        """The mean over n dreams of -log q(choices | data)."""
        return -jnp.mean(jax.vmap(lambda key: dream(key, program, bound_to(given, parameters)))(jax.random.split(key, n)))

    return surprise


@functools.cache
def _posterior_surprise(n: int) -> Callable:
    def surprise(program: FunctionProgram, given: dict[str, Partial], key: Array, parameters: Any) -> Array:
        """The posterior mean of -log q(choices), by a filter of n particles."""
        return -along(key, propose(program, bound_to(given, parameters)), n)

    return surprise


@functools.cache
def _minus_bound(n: int) -> Callable:
    def minus_bound(program: FunctionProgram, given: dict[str, Partial], key: Array, parameters: Any) -> Array:
        drawn = {name: Partial(_reparametrised, name, q) for name, q in bound_to(given, parameters).items()}
        return -filtered(key, propose(program, drawn), n)

    return minus_bound


def _reparametrised(name: str, q: Callable, *args: Any, **options: Any) -> dist.Distribution:
    law = q(*args, **options)
    if isinstance(law, dist.Distribution) and (law.is_discrete or not law.has_rsample):
        raise ValueError(f"learn.filtering: the proposal of {name!r} is a {type(law).__name__}, whose draws have no gradient; learn.proposals learns such ones")
    return law


def filtered(key: PRNGKeyArray, program: FunctionProgram, n: int) -> Float[Array, ""]:
    """The log evidence by a filter of n particles that resamples before each step, with a gradient in the program's leaves; see `filtering`."""
    init_key, loop_key = jax.random.split(key)

    def step(population: Population, time: Array) -> tuple[Population, None]:
        resample_key, step_key = jax.random.split(jax.random.fold_in(loop_key, time))
        return blocks.advance(step_key, program, _resampled(resample_key, program, population)[0]), None

    start = blocks.spawn(init_key, program, n)
    return blocks.evidence(lax.scan(step, start, jnp.arange(program.length))[0] if program.length else start)


def along(key: PRNGKeyArray, program: FunctionProgram, n: int) -> Float[Array, ""]:
    """The log density of all choices by the law that they are drawn from, averaged over the paths of a filter's last particles; its gradient is of that law."""
    init_key, loop_key = jax.random.split(key)

    def step(state: tuple[Population, Array], time: Array) -> tuple[tuple[Population, Array], None]:
        (population, log_q), (resample_key, step_key) = state, jax.random.split(jax.random.fold_in(loop_key, time))
        population, ancestors = _resampled(resample_key, program, population)
        before = lax.stop_gradient(population.particles)
        particles, log_potential, drawn, _ = program.told(step_key, before, {})
        *_, more = program.told(step_key, before, lax.stop_gradient(drawn))
        return (blocks.weigh(population, particles, log_potential), log_q[ancestors] + more), None

    start = blocks.spawn(init_key, program, n)
    first = lax.stop_gradient(start.particles.choices)
    state = start, log_prior(program, first) if first else jnp.zeros(n)
    population, log_q = lax.scan(step, state, jnp.arange(program.length))[0] if program.length else state
    weights = lax.stop_gradient(jnp.exp(normalise(population.log_weights)))
    return jnp.sum(jnp.where(weights > 0, weights * jnp.where(weights > 0, log_q, 0.0), 0.0))


def _resampled(key: Array, program: FunctionProgram, population: Population) -> tuple[Population, Array]:
    """Copies of ancestors, which no gradient goes through, and who they are."""
    ancestors = draw(key, "ancestors", Systematic(lax.stop_gradient(population.log_weights)))
    return blocks.select(program, population, ancestors, blocks.evidence(population)), ancestors
