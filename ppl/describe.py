"""Programs and executions as tables: what a program is made of, and what one particle did."""

import dataclasses
import re
from collections.abc import Iterable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array
from jax.core import Tracer
from jax.tree_util import keystr, tree_leaves_with_path
from numpyro.distributions import constraints
from numpyro.primitives import default_process_message
from rich import box
from rich.console import Console
from rich.table import Table

from posterity.ppl import component
from posterity.ppl.effects import SCAN, Atomic, Decider, isolated
from posterity.ppl.errors import Located, log_density, short
from posterity.ppl.program import FunctionProgram, Program, as_program, is_program
from posterity.ppl.queries import Answer


class Site(NamedTuple):
    """A site of a program."""

    name: str
    part: str  # "initial law", "step" or "end" (evaluated when a particle ends)
    kind: str  # "choice", "observed", "factor", "plate" or "deterministic"
    law: str
    support: str
    value: str  # dtype and shape, as float32[3]
    line: str  # of the user's code, as file:line


class Leaf(NamedTuple):
    """An array, or a component, of a carry or another pytree."""

    path: str
    value: str  # dtype and shape as float32[3]; a component's class


@dataclasses.dataclass(frozen=True, repr=False)
class Description:
    """What a program is made of; it prints as a table."""

    name: str
    length: int  # the largest number of steps
    sites: list[Site]  # of a program made from a function, in the order in which they are met
    carry: list[Leaf]  # what a scan carries, or the particles of another kind of program
    inputs: list[Leaf]  # of each step
    value: list[Leaf]  # the result
    inner: tuple["Description", ...] = ()  # the programs that it was made from

    def __repr__(self) -> str:
        lines = [f"{self.name}, {self.length or 'no'} step{'s' * (self.length != 1)}"]
        if self.sites:
            lines.append(_table([field.replace("value", "a value") for field in Site._fields], self.sites))
        for what, leaves in (("carry", self.carry), ("inputs", self.inputs), ("value", self.value)):
            if leaves:
                lines.append(f" {what:<7} " + ", ".join(f"{leaf.path} {leaf.value}".strip() for leaf in leaves))
        return "\n".join([*lines, *(f"made from {inner!r}" for inner in self.inner)])


def describe(program: Any) -> Description:
    """The structure of a program: its sites, what it carries, its steps and its result. Nothing is computed: all is abstract evaluation.

    A program that is made from others (`chunk`, ..) shows its particles and the programs that it is made from.

    Raises:
      TypeError: when `program` is no program.

    >>> import jax.numpy as jnp, numpyro.distributions as dist, posterity as po
    >>> @po.program
    ... def walk(ys):
    ...     def step(x, y):
    ...         x = po.sample("x", dist.Normal(x, 1.0))
    ...         po.observe("y", dist.Normal(x, 0.5), y)
    ...         return x
    ...     return po.scan(step, po.sample("x0", dist.Normal(0.0, 1.0)), ys)
    >>> [(site.name, site.part, site.kind, site.support) for site in po.describe(walk(jnp.zeros(3))).sites]
    [('x0', 'initial law', 'choice', 'real'), ('x', 'step', 'choice', 'real'), ('y', 'step', 'observed', 'real')]
    """
    program = as_program(program)
    other = lambda x: x is not program and is_program(x)  # noqa: E731
    inner = list(filter(other, jax.tree.leaves(program, is_leaf=other)))
    recorder, function, one = _Recorder(), isinstance(program, FunctionProgram), lambda batch: jax.tree.map(lambda x: x[0] if x.ndim else x, batch)
    found = {"sites": [], "carry": [], "inputs": []}

    def run(key: Array) -> None:
        particles, _ = program.init(key, 1)
        if function and program.length:
            program.step(key, particles)
        found["value"] = _leaves(one(program.value(particles)))
        if function:
            found["sites"] = [_site(site) for site in {site["name"]: site for site in recorder.sites}.values()]
            for scan in recorder.scans:
                x = jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x)[1:], jnp.result_type(x)), scan.xs)
                found["carry"], found["inputs"] = _leaves(scan.init), _leaves(x)
        elif not inner:
            found["carry"] = _leaves(one(particles))

    with recorder, isolated():
        jax.eval_shape(run, jax.random.key(0))
    return Description(_name(program), program.length, inner=tuple(map(describe, inner)), **found)


def _site(site: dict) -> Site:
    kind = _kind(site)
    law, support = (_law(site["fn"]), _support(site["fn"])) if kind in ("choice", "observed") else ("", "")
    value = log_density(site) if kind == "factor" else site["value"]
    return Site(site["name"], site["part"], kind, law, support, ", ".join(leaf.value for leaf in _leaves(value)), short(site["line"]))


def _kind(site: dict) -> str:
    if site["type"] != "sample" or site["part"] == "draw":
        return site["type"].replace("sample", "draw")
    return "choice" if not site["is_observed"] else "factor" if site["fn"].event_shape == (0,) else "observed"


def _law(law: Any) -> str:
    while isinstance(law, (dist.ExpandedDistribution, dist.MaskedDistribution, dist.Independent)):
        law = law.base_dist
    return type(law).__name__.removesuffix("Probs").removesuffix("Logits")


def _support(law: Any) -> str:
    """The support in NumPyro's words; with bounds where they do not depend on what is drawn."""
    support = law.support
    if support is None or isinstance(support, type(constraints.dependent)):
        return "finite" if isinstance(law, Atomic) or law.has_enumerate_support else ""
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    bounds: list[Any] = [getattr(support, bound, None) for bound in ("lower_bound", "upper_bound")]
    known = not any(isinstance(bound, Tracer) or np.ndim(bound) for bound in bounds)
    if isinstance(support, constraints.integer_interval) and known:
        return "{}..{}".format(*bounds)
    if type(support) is constraints.interval and known:
        return "[{:g}, {:g}]".format(*bounds)
    return "0 or 1" if support is constraints.boolean else re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(support).__name__.strip("_")).lower()


def _leaves(tree: Any) -> list[Leaf]:
    return [Leaf(keystr(path), _type(leaf)) for path, leaf in tree_leaves_with_path(tree, is_leaf=component.is_component)]


def _type(leaf: Any) -> str:
    return type(leaf).__name__ if component.is_component(leaf) else f"{jnp.result_type(leaf).name}{list(jnp.shape(leaf))}".replace("[]", "")


# -- one execution ---------------------------------------------------------------------------------------------------------


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
        return f"one execution of {self.name}\n{_table(titles, rows, right=3)}\nvalue: {_words(None, self.value)}, log weight {_number(self.log_weight)}"


class _Recorder(Decider):
    """Lets every draw be made as it would be, and keeps it."""

    def __init__(self) -> None:
        super().__init__()
        self.step, self.sites, self.scans = 0, [], []
        self.initial: set[tuple[str, str]] = set()  # sites of the initial law: later executions replay them

    def process_message(self, msg: Any) -> None:
        default_process_message(msg)
        if msg["type"] == SCAN:
            self.scans.append(msg["args"][0])
        elif "part" in msg or msg["type"] == "sample":
            site = (msg.get("program"), msg["name"])
            if msg.get("part") != "initial law" or site not in self.initial:
                self.sites.append({"part": "draw", **msg, "step": self.step})
            self.initial |= {site}

    def follows(self, stack: list) -> bool:
        return not any(isinstance(handler, Located) for handler in stack)  # an inference that the program runs is its own affair


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
    recorder = _Recorder()
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
    return Trace(_name(program), list(map(_event, events)), np.concatenate(log_potentials), jax.device_get(value))


def _event(site: dict) -> Event:
    kind, log_prob = _kind(site), float(log_density(site))
    if kind == "factor":
        return Event(site["step"], site["name"], kind, "", None, log_prob, "")
    return Event(site["step"], site["name"], kind, _law(site["fn"]), jax.device_get(site["value"]), log_prob, _words(site["fn"], site["value"]))


def _name(program: Program) -> str:
    return repr(program).removeprefix("<").removesuffix(">")


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


def _table(titles: Iterable[str], rows: Iterable[Iterable[str]], right: int = 0) -> str:
    """A table as plain text; the last `right` columns hold numbers."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for k, title in enumerate(titles := list(titles)):
        table.add_column(title, justify="right" if k >= len(titles) - right else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    console = Console(width=160, color_system=None, markup=False, emoji=False, highlight=False)
    with console.capture() as printed:
        console.print(table)
    return "\n".join(line.rstrip() for line in printed.get().splitlines() if line.strip())
