"""Other ways to draw a program's choices, with the same meaning: importance proposals, and the locally optimal one."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist

from posterity.ppl.embed import Atoms
from posterity.ppl.program import FunctionProgram
from posterity.ppl.region import Region, Rewriting, atoms, chosen, joint, rewritten

Proposal = dist.Distribution | Callable[..., dist.Distribution]


class Propose(Rewriting):
    """Draws from the proposals in the choices' place, and weighs by the ratio of densities."""

    def choice(self, msg: Any) -> None:
        self.law, self.proposal = msg["fn"], self._proposal(msg["name"], msg["fn"])
        msg["fn"] = self.proposal

    def chose(self, name: str, value: Any) -> None:
        log_p, log_q = self.law.log_prob(value), self.proposal.log_prob(value)
        self.weigh(f"{name}/weight", jnp.where(jnp.isneginf(log_p), -jnp.inf, log_p - log_q))

    def _proposal(self, name: str, law: dist.Distribution) -> dist.Distribution:
        proposal = self.options[name]
        if not isinstance(proposal, dist.Distribution):
            args, options = self.region.args
            proposal = proposal(*args, **options)
        if not isinstance(proposal, dist.Distribution):
            raise TypeError(f"propose: the proposal of {name!r} must be a distribution or return one, got {type(proposal).__name__}")
        if proposal.shape() != law.shape():
            raise ValueError(f"propose: the proposal of {name!r} draws values of shape {proposal.shape()}, the program draws {law.shape()}")
        if proposal.is_discrete != law.is_discrete:
            kinds = ["discrete" if law.is_discrete else "continuous" for law in (proposal, law)]
            raise ValueError(f"propose: the proposal of {name!r} is {kinds[0]}, the choice itself {kinds[1]}: they have no ratio of densities")
        return proposal


def propose(program: Any, proposals: Mapping[str, Proposal]) -> FunctionProgram:
    """The program with the choices named in `proposals` drawn from those instead, and weighed by p/q.

    Law: the meaning is the program's, whenever every q is positive where p is.

    Args:
      program: one made by `@po.program`.
      proposals: for each name a NumPyro distribution, or a function to one of what the function that holds the choice was
        called with: `(carry, x)` for a choice of the scan's step, the program's arguments for one of its initial law. A
        proposal may be a pytree that is called (a `jax.tree_util.Partial`, an nnx module): other weights compile nothing.

    Raises:
      TypeError: when the program is not made of a function, or a proposal is neither a distribution nor callable.
      ValueError: from the inference: on a name that is no choice of the program, or a proposal of another shape or kind.

    >>> import jax, jax.numpy as jnp, numpyro.distributions as dist, posterity as po
    >>> @po.program
    ... def height(y):
    ...     x = po.sample("x", dist.Normal(0.0, 10.0))
    ...     po.observe("y", dist.Normal(x, 0.1), y)
    ...     return x
    >>> program = po.propose(height(3.0), {"x": lambda y: dist.Normal(y, 0.2)})
    >>> posterior = po.importance(jax.random.key(0), program, n=1_000)
    >>> bool(posterior.ess > 300), bool(abs(posterior.expect() - 3.0) < 0.02)
    (True, True)
    """
    for name, proposal in proposals.items():
        if not callable(proposal):
            raise TypeError(f"propose: the proposal of {name!r} must be a distribution or a function to one, got {type(proposal).__name__}")
    return rewritten(Propose, program, dict(proposals))


class Adapt(Rewriting):
    """Draws the named choices from p(v) g(v) / sum, g the potentials of the rest of the region, and weighs by the sum."""

    def __init__(self, options: Any, region: Region):
        super().__init__(options, region)
        self.log_weights: Any = None  # [k1, k2, ..] of the named choices that are yet to come, given those made

    def choice(self, msg: Any) -> None:
        values, _ = atoms(msg)
        if self.log_weights is None:
            self.log_weights = joint(self.region, self.choices, self.names)
            self.weigh(f"{msg['name']}/evidence", jax.scipy.special.logsumexp(self.log_weights))
        later = tuple(range(1, self.log_weights.ndim))
        self.law = msg["fn"] = Atoms(values, jax.scipy.special.logsumexp(self.log_weights, axis=later))

    def chose(self, name: str, value: Any) -> None:
        self.log_weights = self.log_weights[jnp.argmax(self.law.equal(value))]

    def potential(self, msg: Any) -> None:
        msg["stop"] = self.log_weights is not None  # it is in the sum already


def adapt(program: Any, *names: str) -> FunctionProgram:
    """The program with the named choices drawn from their locally optimal proposal: p times the potentials they meet.

    In the region that holds them (the scan's step, or the initial law) they are drawn from p(v) g(v) / sum_v p(v) g(v),
    where g multiplies the region's potentials from the first of them on, and the sum is the weight. Law: the meaning is
    the program's. A particle then is forbidden only where every value is.

    Args:
      program: one made by `@po.program`.
      names: choices of finite support; several in one region are drawn jointly.

    Raises:
      TypeError: when the program is not made of a function.
      ValueError: without names; from the inference: on a name that is no choice of the program, one of infinite support,
        or when another choice of the region comes after the first of them.

    >>> import jax, jax.numpy as jnp, numpyro.distributions as dist, posterity as po
    >>> @po.program
    ... def sixes():
    ...     def step(total, _):
    ...         die = po.sample("die", dist.DiscreteUniform(1, 6))
    ...         po.factor("a six", jnp.where(die == 6, 0.0, -jnp.inf))
    ...         return total + die
    ...     return po.scan(step, 0, length=10)
    >>> posterior = po.smc(jax.random.key(0), po.adapt(sixes(), "die"), n=2)
    >>> int(posterior.expect()), round(float(jnp.exp(posterior.log_evidence / 10)), 4)
    (60, 0.1667)
    """
    return rewritten(Adapt, program, chosen("adapt", names))
