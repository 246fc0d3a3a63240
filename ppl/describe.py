"""Programs as tables: what a program is made of."""

import dataclasses
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

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
            lines.append(table([field.replace("value", "a value") for field in Site._fields], self.sites))
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
    recorder, function, one = Recorder(), isinstance(program, FunctionProgram), lambda batch: jax.tree.map(lambda x: x[0] if x.ndim else x, batch)
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
    return Description(name_of(program), program.length, inner=tuple(map(describe, inner)), **found)


def _site(site: dict) -> Site:
    kind = kind_of(site)
    law, support = (law_of(site["fn"]), _support(site["fn"])) if kind in ("choice", "observed") else ("", "")
    value = log_density(site) if kind == "factor" else site["value"]
    return Site(site["name"], site["part"], kind, law, support, ", ".join(leaf.value for leaf in _leaves(value)), short(site["line"]))


def kind_of(site: dict) -> str:
    """What a recorded site is: "choice", "observed", "factor", "plate", "deterministic", or "draw" when no program made it."""
    if site["type"] != "sample" or site["part"] == "draw":
        return site["type"].replace("sample", "draw")
    return "choice" if not site["is_observed"] else "factor" if site["fn"].event_shape == (0,) else "observed"


def law_of(law: Any) -> str:
    """The name of a distribution, without what wraps it and how it is parametrised."""
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


class Recorder(Decider):
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


def name_of(program: Program) -> str:
    """What a program calls itself."""
    return repr(program).removeprefix("<").removesuffix(">")


def table(titles: Iterable[str], rows: Iterable[Iterable[str]], right: int = 0) -> str:
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
