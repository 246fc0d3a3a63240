"""Programs dreamt: run with data of their own, drawn where the program observes them."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array, lax
from jaxtyping import Float, PRNGKeyArray
from numpyro import handlers
from numpyro.primitives import Messenger

from posterity.inference.vi.density import arguments, choice_sites
from posterity.ppl import component
from posterity.ppl.effects import AtScan, Reached, Scan, isolated
from posterity.ppl.program import FunctionProgram


class Dreamt(NamedTuple):
    """What was drawn in the place of an observed array."""

    name: str
    observed: Any
    value: Array


class Dreaming(Messenger):
    """Draws what is observed. Factors, which have no law to draw from, weigh nothing."""

    def __init__(self):
        super().__init__()
        self.data: list[Dreamt] = []
        self.observed: Any = None  # by the message on its way

    def process_message(self, msg: Any) -> None:
        self.observed = None
        if msg["type"] == "sample" and msg["is_observed"] and not isinstance(_base(msg["fn"]), dist.Unit):
            self.observed, msg["value"], msg["is_observed"] = msg["value"], None, False

    def postprocess_message(self, msg: Any) -> None:
        if self.observed is not None:
            value = jnp.asarray(msg["value"], jnp.result_type(self.observed))
            if value.shape != jnp.shape(self.observed):
                raise ValueError(
                    f"learn.proposals: the law of {msg['name']!r} draws shape {value.shape}, but observes {jnp.shape(self.observed)}; write it as a law of "
                    "all of these, with .expand(...)"
                )
            self.data.append(Dreamt(msg["name"], self.observed, value))
            self.observed = None

    def choices(self, sites: dict[str, Any]) -> dict[str, Any]:
        """The values of the choices among the sites that it met."""
        dreamt = {entry.name for entry in self.data}
        return {name: site["value"] for name, site in choice_sites(sites).items() if name not in dreamt}

    def check(self, tree: Any, where: str) -> None:
        """Raises ValueError when something was observed that is not in the tree."""
        for name, observed, _ in self.data:
            if not any(leaf is observed for leaf in jax.tree.leaves(tree)):
                raise ValueError(f"learn.proposals: what {name!r} observes is not {where} as it stands: no proposal would know what is dreamt in its place")


def dream(key: PRNGKeyArray, program: FunctionProgram, proposals: Mapping[str, Callable]) -> Float[Array, ""]:
    """log q of the choices of one run with dreamt data, given these data, nats: summed over the choices named, to the run's end.

    Raises:
      ValueError: as `learn.proposals`.
    """
    init_key, step_key = jax.random.split(key)
    called_with = arguments(program)
    reached: list[Scan] = []
    dreaming = Dreaming()
    with isolated(), handlers.trace() as sites, handlers.seed(rng_seed=init_key), dreaming, AtScan(_leave):
        try:
            program()
        except Reached as found:
            reached.extend(found.args)
    dreaming.check(called_with, "an argument of the program")
    choices, data, log_q = dreaming.choices(sites), dreaming.data, jnp.zeros(())
    met = set(choices)
    for scan in reached:
        xs, log_q = _steps(step_key, scan, proposals, met)
        pairs = zip(jax.tree.leaves(scan.xs), jax.tree.leaves(xs), strict=True)
        data = [*data, *(Dreamt("xs", old, new) for old, new in pairs)]
    if missing := proposals.keys() - met:
        named, there = (", ".join(map(repr, sorted(names))) for names in (missing, met))
        raise ValueError(f"learn.proposals: the program has no choice named {named}; its choices are {there or 'none'}")
    args, options = _instead(called_with, data)
    return log_q + _log_q(proposals, choices, *args, **options)


def _steps(key: Array, scan: Scan, proposals: Mapping[str, Callable], met: set[str]) -> tuple[Any, Array]:
    """The steps' inputs with what was dreamt in them, and log q of all choices; the names of these are added to those `met`."""
    if component.parts(scan.init):
        raise TypeError("learn.proposals: the scan's carry holds a component (a language model's text, say), which has no data to dream")

    def once(state: tuple, turn: tuple) -> tuple[tuple, tuple]:
        (carry, ended), (key, x) = state, turn
        dreaming = Dreaming()
        with isolated(), handlers.trace() as sites, handlers.seed(rng_seed=key), dreaming:
            scan.step(carry, x)
        dreaming.check(x, "part of its step's input (the scan's xs)")
        choices, x = dreaming.choices(sites), _instead(x, dreaming.data)
        met.update(choices)
        with isolated(), handlers.seed(rng_seed=key), handlers.substitute(data=choices):
            after = scan.step(carry, x)  # again, with the data that it now has
        after = jax.tree.map(lambda new, old: jnp.where(ended, old, jnp.asarray(new, jnp.result_type(old))), after, carry)
        return (after, ended | scan.ended(after)), (x, jnp.where(ended, 0.0, _log_q(proposals, choices, carry, x)))

    start = jax.tree.map(jnp.asarray, scan.init), jnp.zeros((), bool)
    _, (xs, log_q) = lax.scan(once, start, (jax.random.split(key, scan.length), scan.xs), length=scan.length)
    return xs, jnp.sum(log_q)


def _log_q(proposals: Mapping[str, Callable], choices: dict[str, Any], *args: Any, **options: Any) -> Array:
    """Summed over those of the choices that have a proposal."""
    return sum((jnp.sum(jnp.asarray(proposals[name](*args, **options).log_prob(choices[name]))) for name in proposals.keys() & choices.keys()), jnp.zeros(()))


def _instead(tree: Any, data: list[Dreamt]) -> Any:
    """The tree with what was dreamt in the place of what was observed."""

    def at(leaf: Any) -> Any:
        return next((value for _, observed, value in data if observed is leaf), leaf)

    return jax.tree.map(at, tree)


def _leave(scan: Scan) -> Any:
    raise Reached(scan)


def _base(law: Any) -> Any:
    while isinstance(law, (dist.Independent, dist.ExpandedDistribution, dist.MaskedDistribution)):
        law = law.base_dist
    return law
