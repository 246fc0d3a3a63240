"""Markov chains on whole runs of a program, all chains in one batch: texts and other sequences, moved by the kernels of `on_runs` and `editor`."""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array
from jax.core import Tracer
from jax.tree_util import Partial
from jaxtyping import Bool, Float, PRNGKeyArray
from numpyro import handlers

from posterity.inference.blocks import advance, resample_below, run, spawn
from posterity.inference.checkpoint import Checkpoint
from posterity.inference.drive import check_counts, check_key
from posterity.inference.mcmc.chain import Chain, chain
from posterity.inference.mcmc.exchanging import Exchanging
from posterity.inference.mcmc.metropolis import log_potential
from posterity.inference.mcmc.on_runs import needs_scores, suffix
from posterity.inference.mcmc.power import power
from posterity.inference.mcmc.runs import Kept, Runs, kept
from posterity.inference.mcmc.tries import are_tried, on, spread
from posterity.inference.population import normalise
from posterity.inference.queries import Weighted
from posterity.ppl.effects import followed, isolated, loop
from posterity.ppl.program import Program, as_program, runs_on_host
from posterity.ppl.propose import adapt
from posterity.ppl.transform import known, whole

STARTS = ("prior", "smc")


def mcmc_sequences(
    key: PRNGKeyArray,
    program: Program,
    kernel: Any = None,
    *,
    chains: int = 4,
    draws: int,
    warmup: int = 0,
    thinning: int = 1,
    start: Literal["prior", "smc"] = "prior",
    progress: bool = False,
    checkpoint: Checkpoint | None = None,
) -> Chain:
    """The posterior of a program's runs, texts of a language model say, by Markov chains that change a part of a run and keep the rest.

    All chains move in one batch, in compiled code. What comes before a change is not computed again: runs that are tried share it with the chain's own,
    in a language model's cache too. Every kernel leaves the posterior invariant, whatever its options.

    Args:
      key: a `jax.random.key`.
      program: any program for `suffix`; one made of a function for the other kernels.
      kernel: `po.kernels.suffix()`, `span`, `gibbs`, `conditional_filter`, `editor`, a `cycle` of them, or `parallel_tempering` of any; by default `suffix()`.
      chains: how many.
      draws: states of each chain to keep.
      warmup: moves of each chain before them.
      thinning: of so many moves the last one's state is kept.
      start: "prior", each chain from a run of its own, or "smc", from the particles of one SMC with as many particles as chains: where most runs are
        forbidden, as under a hard constraint. Chains that start from copies of one particle look more alike than they are to R-hat.
      progress, checkpoint: as in `smc`; a move of all chains is a step.

    Returns:
      A `Chain` of the program's values.

    Raises:
      TypeError: for no program, one on the host, or another than a kernel needs.
      ValueError: for counts out of range, another start, or when a potential is NaN or +inf.

    >>> import jax, posterity as po
    >>> lm = po.load("abacus")
    >>> program = po.constrained(lm, "12+34=", po.potentials.regex("[0-9]{2}"), max_tokens=4)
    >>> chains = po.mcmc_sequences(jax.random.key(0), program, chains=4, draws=5, start="smc")
    >>> len(chains), chains.chains, next(iter(chains.answers()))
    (20, 4, '46')
    """
    kernel = suffix() if kernel is None else kernel
    check_counts(chains=(chains, 1))
    target, copies = _ready(program, kernel, chains)
    return _chain(key, target, kernel, _started(start, chains * copies), chains, draws, warmup, thinning, progress, checkpoint)


def power_sampling(
    key: PRNGKeyArray,
    program: Program,
    *names: str,
    exponent: Array | float = 4.0,
    kernel: Any = None,
    block: int = 16,
    moves: int = 10,
    chains: int = 4,
    draws: int = 1,
    warmup: int = 0,
    thinning: int = 1,
    progress: bool = False,
    checkpoint: Checkpoint | None = None,
) -> Chain:
    """Runs by p(x)^exponent times the potentials, p(x) the density of the named choices of a whole run: power sampling of texts.

    Tokens are proposed from p^exponent normalised token by token (a temperature of 1/exponent), and corrected by Metropolis-Hastings on whole suffixes. The
    chains grow as published: `block` steps more, then `moves` moves on what there is, and so on; draws are taken once they are whole. Each move leaves the
    law of p^exponent invariant, runs that end early included; draws after few moves are near to it only as far as the chain has come.

    Args:
      key: a `jax.random.key`.
      program: one made by `@po.program`.
      names: the choices whose density counts, of finite support; "token" when none are named.
      exponent: 1 is the program's own law.
      kernel: as in `mcmc_sequences`, by default `suffix()`.
      block, moves: steps by which the chains grow, and moves of each after that.
      chains, draws, warmup, thinning, progress, checkpoint: as in `mcmc_sequences`, from when the runs are whole.

    Raises:
      TypeError, ValueError: as `power`, `adapt` and `mcmc_sequences`.

    Source: Karan and Du (2025), "Reasoning with sampling: your base model is smarter than you think".

    >>> import jax, posterity as po
    >>> from posterity.models.programs.generate import generate
    >>> lm = po.tabular.ngram(["ab", "ab", "ac", "b"], order=2)
    >>> found = po.power_sampling(jax.random.key(0), generate(lm, "a", max_tokens=3), exponent=3.0, block=1, moves=5, chains=8, draws=200)
    >>> exact = po.exact(po.power(generate(lm, "a", max_tokens=3), 3.0, "token"))
    >>> bool(abs(found.answers()["b"].value - exact.answers()["b"].value) < 0.05)
    True
    """
    kernel, names = suffix() if kernel is None else kernel, names or ("token",)
    check_counts(chains=(chains, 1), moves=(moves, 0))
    target, copies = _ready(adapt(power(program, exponent, *names), *names), kernel, chains)
    start = _grown_by(chains * copies, whole("power_sampling", "block", block), moves)
    return _chain(key, target, kernel, start, chains, draws, warmup, thinning, progress, checkpoint)


@struct.dataclass
class Annealed(Weighted):
    """The best run that each chain came to while it was annealed, and the best of these by weight. It answers the queries of a `Posterior`, and is none."""

    values: Any  # a pytree with leading axis chains
    log_weights: Float[Array, " chains"]  # normalised, nats: equal for those of the best score, -inf for the others
    log_evidence: Float[Array, ""]  # NaN: not estimated
    scores: Float[Array, " chains"]  # the log potential of each, nats
    exponents: Float[Array, " moves"]  # of the potentials: inverse temperatures
    accepted: Bool[Array, "moves chains"]
    choices: dict[str, Any] = struct.field(default_factory=dict)  # none have names

    def __repr__(self) -> str:
        return f"Annealed(chains={len(self)}, moves={len(self.exponents)}, best={float(jnp.max(self.scores)):.4g} nats, no posterior)"

    def _check_alive(self) -> None:
        if not jnp.any(self.scores > -jnp.inf):
            raise ValueError(f"in {len(self.exponents)} moves no chain found a run that the potentials allow; more moves or chains may, or start='smc'")


def anneal(
    key: PRNGKeyArray,
    program: Program,
    kernel: Any = None,
    *,
    exponents: Float[Array, " moves"],
    chains: int = 4,
    start: Literal["prior", "smc"] = "prior",
) -> Annealed:
    """Simulated annealing: a move for each of rising exponents b, which leaves prior times potentials^b invariant; the best run that each chain met.

    An optimiser, not a sampler: hence no `Chain`. With exponents that all are the same it would be one.

    Args:
      key, kernel, chains, start: as in `mcmc_sequences`.
      program: its potentials are what is optimised (rewards, log densities of observations); its choices' law is what is searched by.
      exponents: inverse temperatures, one a move, from 0 on; `jnp.geomspace(0.1, 10.0, 200)` say.

    Raises:
      TypeError: as `mcmc_sequences`.
      ValueError: as `mcmc_sequences`; for exponents that are no vector of numbers from 0 on.

    Source: Kirkpatrick, Gelatt and Vecchi (1983).

    >>> import jax, jax.numpy as jnp, numpyro.distributions as dist, posterity as po
    >>> @po.program
    ... def climb():
    ...     def step(x, _):
    ...         x = x + po.sample("up", dist.Bernoulli(0.5))
    ...         po.factor("height", 1.0 * x)
    ...         return x
    ...     return po.scan(step, 0, length=6)
    >>> found = po.anneal(jax.random.key(0), climb(), exponents=jnp.linspace(0.1, 3.0, 100))
    >>> found.answers()
    {6: Estimate(value=1.0, error=0.0)}
    """
    kernel = suffix() if kernel is None else kernel
    check_key(key)
    check_counts(chains=(chains, 1))
    exponents = jnp.asarray(exponents, float)
    if exponents.ndim != 1 or not exponents.size or not known(exponents, lambda x: (x >= 0).all()):
        raise ValueError(f"anneal: exponents must be a vector of numbers from 0 on, one a move, got {exponents!r}")
    found, invalid = (_annealed.__wrapped__ if followed() else _annealed)(key, _ready(program, kernel, chains)[0], kernel, exponents, _started(start, chains))  # pyright: ignore[reportAttributeAccessIssue] - jit keeps it
    if not isinstance(invalid, Tracer) and int(invalid):
        raise ValueError(f"{program}: {int(invalid)} proposals had a log potential that was NaN or +inf; each must be finite or -inf")
    return found


# -- how they run ------------------------------------------------------------------------------------------------------------


def _ready(program: Any, kernel: Any, chains: int) -> tuple[Kept, int]:
    """The program with its runs kept, and how many copies of each chain the kernel moves, those of one power after those of another."""
    program = as_program(program)
    if runs_on_host(program):
        raise TypeError(f"chains move runs in compiled code; the steps of {program} run on the host")
    if not isinstance(kernel, Exchanging):
        return kept(program, scored=needs_scores(kernel)), 1
    return kept(program, scored=kernel.scored, exponent=jnp.repeat(kernel.exponents, chains)), kernel.exponents.shape[0]


def _chain(
    key: Any, program: Kept, kernel: Any, start: Callable, chains: int, draws: int, warmup: int, thinning: int, progress: bool, checkpoint: Any
) -> Chain:
    begin, step, read = Partial(_begin, program, kernel, Partial(start)), Partial(_step, program, kernel), Partial(_read_of(chains), program)
    counts = {"draws": draws, "warmup": warmup, "chains": chains, "thinning": thinning}
    return chain(key, program, begin, step, read, **counts, progress=progress, checkpoint=checkpoint)


def _begin(program: Kept, kernel: Any, start: Callable, init_key: Array, run_key: Array) -> Runs:
    return start(init_key, run_key, program, kernel)


def _step(program: Kept, kernel: Any, key: Array, runs: Runs) -> tuple[Runs, Any]:
    return kernel(key, program, runs)


@functools.cache
def _read_of(chains: int) -> Callable:
    """One object for each number of chains: jit knows compiled code again by it."""
    return functools.partial(_read, chains=chains)


def _read(program: Kept, runs: Runs, *, chains: int) -> tuple[Any, Bool[Array, " chains"]]:
    """Of each chain the copy whose power is 1: those come first."""
    return jax.tree.map(lambda x: x[:chains], program.value(runs)), log_potential(runs)[:chains] > -jnp.inf  # pyright: ignore[reportArgumentType]


def roomy(program: Kept, kernel: Any, runs: Runs) -> Runs:
    """The runs with as many rows as the kernel leaves, so that it can move them again and again."""
    with handlers.block(), isolated():  # shapes are asked for, nothing is drawn
        after = jax.eval_shape(lambda runs: kernel(jax.random.key(0), program, runs)[0], runs)
    return spread(program, runs, after.groups - 1)


@functools.cache
def _started(start: str, chains: int) -> Callable:
    """One object for these options: jit knows compiled code again by it."""
    if start not in STARTS:
        raise ValueError(f"start must be one of {', '.join(STARTS)}, got {start!r}")
    return functools.partial({"prior": _from_prior, "smc": _from_smc}[start], chains=chains)


@functools.cache
def _grown_by(chains: int, block: int, moves: int) -> Callable:
    return functools.partial(_grown, chains=chains, block=block, moves=moves)


def _from_prior(init_key: Array, run_key: Array, program: Kept, kernel: Any, *, chains: int) -> Runs:
    return roomy(program, kernel, run(run_key, program, program.init(init_key, chains)[0], program.length))


def _from_smc(init_key: Array, run_key: Array, program: Kept, kernel: Any, *, chains: int) -> Runs:
    def turn(state: tuple) -> tuple:
        t, population = state
        resample_key, advance_key = jax.random.split(jax.random.fold_in(run_key, t))
        population, _ = resample_below(0.5, resample_key, program, population)
        return t + 1, advance(advance_key, program, population)

    length, start = program.length, (jnp.zeros((), jnp.int32), spawn(init_key, program, chains))
    t, population = loop(lambda state: state[0] < length, turn, start, limit=length) if length else start
    population, _ = resample_below(2.0, jax.random.fold_in(run_key, t), program, population)  # always, if any has weight
    return roomy(program, kernel, population.particles)


def _grown(init_key: Array, run_key: Array, program: Kept, kernel: Any, *, chains: int, block: int, moves: int) -> Runs:
    runs = roomy(program, kernel, program.init(init_key, chains)[0])
    length = program.length

    def turn(state: tuple) -> tuple:
        t, runs = state
        on_key, move_key = jax.random.split(jax.random.fold_in(run_key, t))
        time = jnp.minimum((t + 1) * block, length)
        runs = on(on_key, program, runs, time, ~are_tried(runs, runs.groups - 1))

        def move(state: tuple) -> tuple:
            k, runs = state
            return k + 1, kernel(jax.random.fold_in(move_key, k), program, runs, time=time)[0]

        return t + 1, loop(lambda state: state[0] < moves, move, (jnp.zeros((), jnp.int32), runs), limit=moves)[1] if moves else runs

    blocks = -(-length // block)
    return loop(lambda state: state[0] < blocks, turn, (jnp.zeros((), jnp.int32), runs), limit=blocks)[1] if blocks else runs


@functools.partial(jax.jit, static_argnames="start")
def _annealed(key: Array, program: Kept, kernel: Any, exponents: Array, start: Callable) -> tuple[Annealed, Array]:
    init_key, run_key, move_key = jax.random.split(key, 3)
    with isolated():
        runs = start(init_key, run_key, program, kernel)
        chains, moves = runs.chains, exponents.shape[0]

        def score(runs: Runs) -> Array:
            return log_potential(runs)[:chains]  # pyright: ignore[reportArgumentType]

        def turn(state: tuple) -> tuple:
            t, runs, values, scores, accepted, invalid = state
            runs, moved = kernel(jax.random.fold_in(move_key, t), replace(program, exponent=exponents[t]), runs)
            now, value = score(runs), program.value(runs)
            better = now > scores
            values = jax.tree.map(lambda new, old: jnp.where(better.reshape(-1, *[1] * (new.ndim - 1)), new, old), value, values)
            accepted = accepted.at[t].set(moved.accepted[:chains])
            return t + 1, runs, values, jnp.maximum(now, scores), accepted, invalid + jnp.sum(moved.invalid, dtype=jnp.int32)

        none = jnp.zeros((), jnp.int32)
        state = none, runs, program.value(runs), score(runs), jnp.zeros((moves, chains), bool), none
        _, _, values, scores, accepted, invalid = loop(lambda state: state[0] < moves, turn, state, limit=moves)
    best = (scores == jnp.max(scores)) & (scores > -jnp.inf)
    return Annealed(values, normalise(jnp.where(best, 0.0, -jnp.inf)), jnp.array(jnp.nan), scores, exponents, accepted), invalid
