"""Metropolis-Hastings on traces: one choice or a block is drawn anew by its law, the others stay as they are where they still can.

What stays is judged by its law under the new values, and what a new value makes impossible (a support that moved, a step that is no longer made)
is drawn anew with it. The ratio counts what is drawn on the way there and on the way back (Green 1995; Wingate, Stuhlmueller and Goodman 2011).
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from flax import struct
from jax import Array
from jax.tree_util import Partial
from jaxtyping import Bool, Float

from posterity.inference.blocks import Kernel, Moved, run
from posterity.inference.mcmc.metropolis import accept, log_potential, made, upto, where
from posterity.inference.mcmc.parameters import Choices, Parametric, initial_sites
from posterity.inference.mcmc.space import checked, named
from posterity.inference.recorded import Recorded, Trajectory
from posterity.inference.retraced import Told, go_on
from posterity.ppl.effects import cond, draw, particle_map
from posterity.ppl.errors import log_density


def single_site(*names: str) -> Kernel:
    """Single-site Metropolis-Hastings: one choice, picked at random, gets a fresh draw of its law given those before it; the others stay where they can.

    For choices of any kind, whose laws and supports may depend on each other. Accepted with min(1, G'/G prod p'(x_j)/p(x_j)) over what stays; a
    move whose way back would draw other things anew than the way there did is refused. Leaves the target invariant.

    In `po.mcmc` also for programs with a scan, where a step and the initial law are the sites: see `site_mh`.

    Args:
      names: the choices to pick from; all if none are named. (A choice that is an array is drawn anew as a whole.)

    Raises (from the sampler):
      ValueError: when there is no choice of that name.

    Source: Wingate, Stuhlmueller and Goodman (2011), "Lightweight implementations of probabilistic programming languages".

    >>> import jax, jax.numpy as jnp, numpyro.distributions as dist, posterity as po
    >>> @po.program
    ... def either():
    ...     far = po.sample("far", dist.Bernoulli(0.5))
    ...     x = po.sample("x", dist.Categorical(jnp.where(far == 1, jnp.array([0.0, 0.0, 0.5, 0.5]), jnp.array([0.5, 0.5, 0.0, 0.0]))))
    ...     po.factor("prefers", jnp.log(jnp.array([1.0, 1.0, 1.0, 5.0]))[x])
    ...     return far
    >>> chain = po.mcmc(jax.random.key(0), either(), kernel=po.kernels.single_site(), draws=2_000)
    >>> bool(abs(chain.expect() - 0.75) < 0.05)
    True
    """
    return Partial(named(_single, names))


def block(*names: str) -> Kernel:
    """As `single_site`, but the named choices (all, if none are) are drawn anew together, each by its law given those before it.

    A block of all choices is `prior()`.

    Raises (from the sampler):
      ValueError: when there is no choice of one of the names.

    >>> import posterity as po
    >>> kernel = po.kernels.cycle(po.kernels.block("mean", "spread"), po.kernels.single_site())
    """
    return Partial(named(_block, names))


def _single(key: Array, program: Parametric, particles: Any, *, time: Any = None, names: tuple[str, ...]) -> tuple[Any, Moved]:
    if isinstance(program, Recorded):
        return site_mh(key, program, particles, time=time)
    pick_key, key = jax.random.split(key)
    choices = program.choices(particles)
    names = checked("single_site", program, names, choices)
    n = jax.tree.leaves(choices)[0].shape[0]
    picked = draw(pick_key, "pick", dist.CategoricalLogits(jnp.zeros((n, len(names)))))
    return _redrawn(key, program, particles, {name: picked == index for index, name in enumerate(names)}, time)


def _block(key: Array, program: Parametric, particles: Any, *, time: Any = None, names: tuple[str, ...]) -> tuple[Any, Moved]:
    choices = program.choices(particles)
    names = checked("block", program, names, choices)
    n = jax.tree.leaves(choices)[0].shape[0]
    return _redrawn(key, program, particles, dict.fromkeys(names, jnp.ones(n, bool)), time)


def _redrawn(key: Array, program: Parametric, particles: Any, picked: dict[str, Bool[Array, " n"]], time: Any) -> tuple[Any, Moved]:
    """Moves every particle by drawing anew what is picked."""
    draw_key, at_key, accept_key = jax.random.split(key, 3)
    choices = program.choices(particles)
    n = jax.tree.leaves(choices)[0].shape[0]
    one = lambda key, choices, picked: redraw(key, program, choices, picked)  # noqa: E731
    proposed, log_factor = particle_map(one, (0, 0, 0), (0, 0))(jax.random.split(draw_key, n), choices, picked)
    fresh = program.at(at_key, proposed, particles, time)
    moved = accept(accept_key, program.log_likelihood(fresh), program.log_likelihood(particles), log_factor)
    return where(moved.accepted, fresh, particles), moved


def redraw(key: Array, program: Parametric, choices: Choices, picked: dict[str, Array]) -> tuple[Choices, Float[Array, ""]]:
    """Of one particle: the choices, what is picked and what it makes impossible drawn anew; and the log of p(new) q(old | new) / (p(old) q(new | old)).

    What is drawn by its law cancels. So what stays counts by p'(x)/p(x), and the whole by 0 when the way back would keep something that was drawn anew:
    from there the old value cannot come up.
    """
    before = initial_sites(program.inner, lambda site: choices.get(site["name"]))
    log_factors = []

    def value(site):
        name = site["name"]
        if name not in choices:
            return None
        old, law, asked = choices[name], site["fn"], picked.get(name, jnp.zeros((), bool))
        stays = ~asked & _possible(law, old)
        new = cond(stays, lambda: old, lambda: jnp.asarray(draw(jax.random.fold_in(key, len(log_factors)), f"fresh {name}", law), old.dtype))
        ratio = log_density({**site, "value": old, "intermediates": None}) - log_density(before[name])
        returns = asked | ~_possible(before[name]["fn"], new)
        log_factors.append(jnp.where(stays, ratio, jnp.where(returns, 0.0, -jnp.inf)))
        return new

    sites = initial_sites(program.inner, value)
    return {name: sites[name]["value"] for name in choices}, sum(log_factors, jnp.zeros(()))


def _possible(law: dist.Distribution, value: Array) -> Bool[Array, ""]:
    inside = jnp.all(jnp.asarray(law.support(value)))  # pyright: ignore[reportOptionalCall] - every distribution has one
    return inside & jnp.all(jnp.asarray(law.log_prob(value)) > -jnp.inf)


# -- programs with steps ------------------------------------------------------------------------------------------------------


def site_mh(key: Array, program: Recorded, particles: Trajectory, *, time: Array | int | None = None) -> tuple[Trajectory, Moved]:
    """Draws anew what one position of a trajectory chose (the initial law, or a step), keeps what later steps chose, accepts or stays.

    If the run now goes on for longer than before, the steps there are drawn anew; if it ends earlier, those behind are dropped. Accepted with probability

        min(1, G(x') prod p'(x_t) n(x) / (G(x) prod p(x_t) n(x')))

    over the steps that stay, n(x) being the number of positions. Leaves the law of trajectories invariant. Unlike `suffix_mh` it keeps the future,
    which pays where this hangs on the present but loosely.

    Args:
      key: a `jax.random.key`.
      program: `recorded(retraced(program))`.
      particles: what is to be moved, each on its own.
      time: how many steps they have been run for; by default to the end.

    Source: Wingate, Stuhlmueller and Goodman (2011); Green (1995).
    """
    position_key, draw_key, accept_key = jax.random.split(key, 3)
    possible = jnp.where(made(particles), 0.0, -jnp.inf)
    position = draw(position_key, "position", dist.CategoricalLogits(possible, validate_args=False))
    proposed = _again(draw_key, program, particles, position, program.length if time is None else time)
    steps = jnp.arange(1, program.length + 1)
    stays = (steps > position[:, None]) & (steps <= jnp.minimum(particles.steps, proposed.steps)[:, None])
    log_new, log_old = (jnp.sum(jnp.where(stays, _log_laws(program, x), 0.0), axis=1) for x in (proposed, particles))
    log_factor = jnp.where(jnp.isneginf(log_new), -jnp.inf, log_new - log_old + jnp.log(positions(particles) / positions(proposed)))
    moved = accept(accept_key, log_potential(proposed), log_potential(particles), log_factor)
    return where(moved.accepted, proposed, particles), moved


def positions(particles: Trajectory) -> Float[Array, " n"]:
    """How many positions every trajectory has: the initial law, and its steps."""
    return jnp.sum(made(particles), axis=1).astype(float)


@struct.dataclass
class Following:
    """A retraced program whose particles choose what others chose, at the steps where they are told to."""

    inner: Any  # `Retraced`
    drawn: dict[str, Any]  # [n, length + 1, ...] what was chosen at every step
    follows: Bool[Array, "n times"]

    @property
    def length(self) -> int:
        return self.inner.length

    def init(self, key: Array, n: int) -> tuple[Told, Array]:
        return self.inner.init(key, n)

    def step(self, key: Array, particles: Told, *, where: Array | None = None) -> tuple[Told, Array]:
        rows, now = jnp.arange(particles.steps.shape[0]), jnp.minimum(particles.steps + 1, self.length)
        told, _, log_potential = go_on(self.inner, particles, jax.tree.map(lambda x: x[rows, now], self.drawn))
        fresh, log_fresh = self.inner.step(key, particles, where=where)
        follow = self.follows[rows, now]
        return _either(follow, told, fresh), jnp.where(follow, log_potential, log_fresh)

    def done(self, particles: Told) -> Array:
        return self.inner.done(particles)

    def select(self, particles: Told, ancestors: Array) -> Told:
        return self.inner.select(particles, ancestors)

    def value(self, particles: Told) -> Any:
        return self.inner.value(particles)


def _either(condition: Bool[Array, " n"], one: Told, other: Told) -> Told:
    """For every particle the one where the condition holds, else the other; what all share is the same in both."""
    return jax.tree.map(lambda a, b: jnp.where(condition.reshape(-1, *[1] * (a.ndim - 1)), a, b) if a.ndim else a, one, other)


def _again(key: Array, program: Recorded, particles: Trajectory, position: Array, time: Array | int) -> Trajectory:
    """Every particle run again to `time` steps: its past before `position` [n] as it was, the position anew, what it chose later as it was."""
    init_key, step_key = jax.random.split(key)
    steps = jnp.arange(program.length + 1)
    follows = (steps != position[:, None]) & (steps <= particles.steps[:, None])
    guided = Recorded(Following(program.inner, particles.states.drawn, follows))
    fresh, _ = guided.init(init_key, position.shape[0])
    fresh = where(position > 0, upto(particles, 0, fresh), fresh)
    return run(step_key, guided, fresh, time)


def _log_laws(program: Recorded, particles: Trajectory) -> Float[Array, "n length"]:
    """The log density of what every step chose, given the state before it; of steps not made it may be anything."""

    def at_step(t: Array) -> Array:
        past = jax.tree.map(lambda history, now: history[:, t - 1] if now.ndim else history[0, t - 1], particles.states, particles.now)
        drawn = jax.tree.map(lambda x: x[:, t], particles.states.drawn)
        return go_on(program.inner, past, drawn)[1]  # pyright: ignore[reportArgumentType] - a retraced program

    if not program.length:
        return jnp.zeros((particles.steps.shape[0], 0))
    return jax.vmap(at_step, out_axes=1)(jnp.arange(1, program.length + 1))


def is_single_site(kernel: Any) -> bool:
    """Whether the kernel is `single_site()` on all choices."""
    return isinstance(kernel, Partial) and kernel.func == Partial(named(_single, ())).func
