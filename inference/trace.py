"""Executions as tables: what one particle of a program did."""

import dataclasses
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.tree_util import keystr, tree_leaves_with_path

from posterity.ppl.answer import Answer
from posterity.ppl.describe import Recorder, kind_of, law_of, name_of, table
from posterity.ppl.effects import isolated
from posterity.ppl.errors import log_density
from posterity.ppl.program import as_program


@runtime_checkable
class Speaking(Protocol):
    """A distribution whose values have words: a capability, which a distribution need not have."""

    def words(self, value: Any) -> str:
        """A single value as a reader knows it: a token's text, say."""
        ...


class Event(NamedTuple):
    """A site as one execution met it."""

    step: int  # 0 is the initial law
    name: str
    kind: str  # "choice", "observed" or "factor"; "draw" when the inference's machinery made it
    law: str
    value: Any  # a NumPy array, or a pytree of them; None for factors
    log_prob: float  # nats: density of the value; a factor's log potential
    words: str  # the value in words


@dataclasses.dataclass(frozen=True, repr=False)
class Trace:
    """One execution of a program; it prints as a table."""

    name: str
    sites: list[Event]
    log_potentials: np.ndarray  # [steps + 1] nats, of the initial law and of every step
    value: Any  # the result

    @property
    def log_weight(self) -> float:
        """The particle's log weight at the end, nats."""
        return float(self.log_potentials.sum())

    def __repr__(self) -> str:
        rows = []
        for step, (potential, total) in enumerate(zip(self.log_potentials, np.cumsum(self.log_potentials), strict=True)):
            of_step = [["", e.name, e.kind, e.law, e.words, _number(e.log_prob), "", ""] for e in self.sites if e.step == step] or [[""] * 8]
            of_step[0][0], of_step[-1][-2:] = str(step), [_number(potential), _number(total)]
            rows += of_step
        titles = ["step", "site", "kind", "law", "a value", "log prob", "log potential", "total (nats)"]
        return f"one execution of {self.name}\n{table(titles, rows, right=3)}\nvalue: {_words(None, self.value)}, log weight {_number(self.log_weight)}"


def trace(key: Array, program: Any) -> Trace:
    """One execution of a program, site by site, by the program's own law.

    Args:
      key: a `jax.random.key`; the same key gives the same execution.
      program: any program; what an inference inside it draws is not shown.

    Raises:
      TypeError: when `program` is no program.

    >>> import jax, numpyro.distributions as dist, posterity as po
    >>> @po.program
    ... def coin(flips):
    ...     p = po.sample("p", dist.Beta(1.0, 1.0))
    ...     po.observe("flips", dist.Bernoulli(p), flips)
    ...     return p
    >>> execution = po.trace(jax.random.key(0), coin(jax.numpy.ones(3)))
    >>> [(site.name, site.kind) for site in execution.sites], abs(execution.log_weight - execution.sites[1].log_prob) < 1e-6
    ([('p', 'choice'), ('flips', 'observed')], True)
    """
    program = as_program(program)
    init_key, step_key = jax.random.split(key)
    recorder = Recorder()
    with jax.disable_jit(), recorder, isolated():  # branches and loops run in Python, so that each draw is seen with its value
        particles, log_potential = program.init(init_key, 1)
        log_potentials = [log_potential]
        while not (done := program.done(particles)[0]) and log_potential[0] > -jnp.inf:
            recorder.step += 1
            particles, log_potential = program.step(jax.random.fold_in(step_key, recorder.step - 1), particles)
            log_potentials.append(log_potential)
        events = [site for site in recorder.sites if site["type"] == "sample" and not any(isinstance(x, Tracer) for x in jax.tree.leaves(site["value"]))]
        at_end = {site["name"]: site for site in events if site["part"] == "end" and site["step"] == recorder.step}  # they count after the last step
        events = [site for site in events if site["part"] != "end"] + (list(at_end.values()) if done else [])
    with isolated():
        value = jax.tree.map(lambda x: x[0], program.value(particles))
    return Trace(name_of(program), list(map(_event, events)), np.concatenate(log_potentials), jax.device_get(value))


def _event(site: dict) -> Event:
    kind, log_prob = kind_of(site), float(log_density(site))
    if kind == "factor":
        return Event(site["step"], site["name"], kind, "", None, log_prob, "")
    return Event(site["step"], site["name"], kind, law_of(site["fn"]), jax.device_get(site["value"]), log_prob, _words(site["fn"], site["value"]))


def _words(law: Any, value: Any) -> str:
    if isinstance(law, Speaking):
        return law.words(value)
    if isinstance(value, Answer):
        return repr(str(value))
    if jax.tree_util.all_leaves([value]):
        return np.array2string(np.asarray(value), precision=4, threshold=8, edgeitems=2, separator=", ").replace("\n", "")
    return ", ".join(f"{keystr(path)} {_words(None, leaf)}" for path, leaf in tree_leaves_with_path(value, is_leaf=lambda x: isinstance(x, Answer)))


def _number(x: Any) -> str:
    return f"{x + 0.0:.4g}"  # no minus before zero
