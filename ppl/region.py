"""Rewriting a program from within, region by region: its initial law up to the scan, and the scan's step.

A transformation of functions is a handler of the choices and potentials of one region. It runs inside the program that it
makes, so that every interpreter (the batched program, NumPyro's kernels) sees only the result.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpyro import handlers
from numpyro.primitives import _PYRO_STACK, Messenger

from posterity.ppl.effects import SCAN, Reached, Scan, factor
from posterity.ppl.errors import log_density
from posterity.ppl.program import Definition, FunctionProgram
from posterity.ppl.support import atoms as atoms_of
from posterity.ppl.transform import bound


class Region(NamedTuple):
    """A part of a program that is rewritten as a whole."""

    run: Callable[[], Any]  # runs it again from its start (and what follows it in the program, unless `Reached` leaves it)
    args: tuple[tuple, dict]  # what the function that holds its sites was called with
    before: frozenset[str]  # the names of the choices made in the region before


class Rewriting(Messenger):
    """Base of the transformations: meets the choices and potentials of one region; every step gets a new one of its own."""

    kind = "choice"  # what the options name

    def __init__(self, options: Any, region: Region):
        super().__init__()
        self.options, self.region = options, region
        self.names = frozenset(options)
        self.met, self.over = set(region.before), False
        self.choices: dict[str, Any] = {}  # the values of this region's choices so far
        self._name: str | None = None

    def choice(self, msg: Any) -> None:
        """Rewrites the message of a choice that the options name."""

    def chose(self, name: str, value: Any) -> None:
        """Hears what such a choice has come to."""

    def potential(self, msg: Any) -> None:
        """Rewrites the message of an observation or factor."""

    def finish(self) -> None:
        """What is to be done at the region's end."""

    def weigh(self, name: str, log_potential: Array) -> None:
        """A potential of its own, which only the handlers around it meet."""
        with stacked(_PYRO_STACK[: _PYRO_STACK.index(self)]):
            factor(name, log_potential)

    def scan(self, scan: Scan) -> Scan:
        """The scan with its steps rewritten."""
        return scan._replace(step=lambda carry, x: self.step(scan.step, carry, x))

    def step(self, step: Callable, carry: Any, x: Any, options: Any = None) -> Any:
        """One step, rewritten (with other options, if given)."""
        region = Region(lambda: step(carry, x), ((carry, x), {}), frozenset(self.met))
        with type(self)(self.options if options is None else options, region):
            return step(carry, x)

    def process_message(self, msg: Any) -> None:
        self._name = None
        if self.over:
            return
        if msg["type"] == SCAN:
            self.over = True
            self.finish()
            msg["args"] = (self.scan(*msg["args"]),)
        elif msg["type"] == "sample" and msg["is_observed"]:
            self.potential(msg)
        elif msg["type"] == "sample":
            name = msg["name"]  # handlers may rename it
            self.met.add(name)
            if name in self.names:
                self.choice(msg)
            self._name = name
        elif msg["type"] == "plate":
            self._name = msg["name"]

    def postprocess_message(self, msg: Any) -> None:
        name, self._name = self._name, None  # messages that are sent from here on have names of their own
        if name is not None:
            self.choices[name] = msg["value"]
            if name in self.names and msg["type"] == "sample":
                self.chose(name, msg["value"])

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            if kind is None and not self.over:
                self.finish()
                missing, there = (", ".join(map(repr, sorted(names))) for names in (self.names - self.met, self.met))
                if missing:
                    raise ValueError(f"{_name_of(type(self))}: the program has no {self.kind} named {missing}; its {self.kind}s are {there or 'none'}")
        finally:
            super().__exit__(kind, error, trace)


@dataclasses.dataclass(frozen=True)
class Over:
    """The function of a transformed program: the program inside, under a handler of its regions."""

    handler: type[Rewriting]

    @property
    def __name__(self) -> str:
        return _name_of(self.handler)

    def __call__(self, inner: FunctionProgram, options: Any) -> Any:
        with self.handler(options, Region(inner, _called_with(inner), frozenset())):
            return inner()


def rewritten(handler: type[Rewriting], program: Any, options: Any) -> FunctionProgram:
    """The program under a handler of its regions; arrays in the handler's options become leaves of it."""
    return Definition(Over(handler)).bind(of_function(_name_of(handler), program), options)


def of_function(name: str, program: Any) -> FunctionProgram:
    """The program that transformation `name` was given, one made of a function.

    Raises:
      TypeError: when it is none.
    """
    program = bound(name, program)
    if not isinstance(program, FunctionProgram):
        raise TypeError(f"{name}: the program must be one that @po.program makes, got {program}; apply {name} before other transformations")
    return program


class Given(Messenger):
    """Keeps a region's run apart from everything around it, and adds up its potentials from the first of `names` on.

    The choices called `names` take the atoms at `indices`, in the order in which they are met. With `at_scan` in the place of
    the scan it goes on beyond the region: potentials then are those from the scan on, and choices are drawn idly.
    """

    def __init__(self, names: frozenset[str], indices: Array | None, at_scan: Callable[[Scan], Any] | None):
        super().__init__()
        self.names, self.indices, self.at_scan = names, indices, at_scan
        self.beyond = False
        self.sizes: list[int] = []  # of the supports met
        self.laws: dict[str, Any] = {}  # of the choices after the first of `names`
        self.log_prob, self.log_potential = jnp.zeros(()), jnp.zeros(())

    def process_message(self, msg: Any) -> None:
        msg["stop"] = msg["type"] != "param"
        if msg["type"] == SCAN:
            if self.at_scan is None:
                raise Reached(*msg["args"])
            msg["fn"], self.beyond, self.log_potential = self.at_scan, True, jnp.zeros(())
        elif msg["type"] == "prng_key" and self.sizes:
            named = ", ".join(map(repr, sorted(self.names)))
            raise ValueError(f"po.key() is called where the values of {named} are summed: an inference there would not draw anew; embed it before that choice")
        elif msg["type"] == "sample" and msg["is_observed"]:
            self.log_potential = self.log_potential + (log_density(msg) if self.sizes else 0.0)
        elif msg["type"] == "sample" and msg["name"] in self.names:
            values, log_probs = atoms(msg)
            index = 0 if self.indices is None else self.indices[len(self.sizes)]
            self.sizes.append(len(log_probs))
            self.log_prob = self.log_prob + log_probs[index]
            msg["value"] = jax.tree.map(lambda x: x[index], values)
        elif msg["type"] == "sample":
            if self.sizes:
                self.laws[msg["name"]] = msg["fn"]
            if msg["value"] is None and not self.beyond:
                named = ", ".join(map(repr, sorted(self.names)))
                raise ValueError(f"adapt: {msg['name']!r} is drawn after the first of the choices to adapt, {named}; name it too, or draw it before")


def joint(
    region: Region,
    choices: dict[str, Any],
    names: frozenset[str],
    rest: Callable[[Given, Any], Any] = lambda given, result: None,
    at_scan: Callable[[Scan], Any] | None = None,
) -> Array:
    """log p(v) + log potentials at all joint values v of the choices called `names`, [k1, k2, ..], in the order they are met.

    All v at once, and only this is computed: the tokens of a vocabulary cost one number each. Checks that
    `rest(given, result of the region)` does not depend on v.

    Raises:
      ValueError: by JAX, naming out_axes, when it does.
    """
    before = {name: value for name, value in choices.items() if name not in names}

    def at(indices: Array | None) -> tuple[Array, Any]:
        given = Given(names, indices, at_scan)
        try:
            with given, handlers.seed(rng_seed=jax.random.key(0)), handlers.substitute(data=before):  # the key is idle: draws are given
                result = region.run()
        except Reached as reached:
            (scan,) = reached.args
            result = (scan.init, scan.xs)
        sizes[:] = given.sizes
        weight = jnp.where(jnp.isneginf(given.log_prob), -jnp.inf, given.log_prob + given.log_potential)  # the impossible may have any potential
        return weight, rest(given, result)

    sizes: list[int] = []
    jax.eval_shape(lambda: at(None)[0])
    grid = jnp.asarray(np.indices(sizes).reshape(len(sizes), -1).T)
    return jax.vmap(at, out_axes=(0, None))(grid)[0].reshape(sizes)


def atoms(msg: Any) -> tuple[Any, Array]:
    """The values that a choice can take, leading axis k, and their log probabilities [k].

    Raises:
      ValueError: when it has no finite support, or is a batch of choices.
    """
    values, log_probs = atoms_of(msg)
    size, draws = log_probs.shape
    if draws != 1:
        raise ValueError(f"{msg['name']!r} is a batch of {draws} choices; write them as separate choices")
    return jax.vmap(values)(jnp.arange(size)[:, None]), log_probs[:, 0]


@contextlib.contextmanager
def stacked(handlers: list[Messenger]) -> Iterator[None]:
    """What happens here is met by these handlers, the last first, and not by those that stand."""
    before = _PYRO_STACK[:]
    _PYRO_STACK[:] = handlers
    try:
        yield
    finally:
        _PYRO_STACK[:] = before


def chosen(transformation: str, names: tuple) -> tuple[str, ...]:
    """The names of choices that a transformation was given.

    Raises:
      ValueError: when there are none, or they are no names.
    """
    if not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{transformation}: give the names of choices, got {names!r}")
    return names


def _called_with(program: FunctionProgram) -> tuple[tuple, dict]:
    args, options = program.arguments
    return _called_with(args[0]) if isinstance(program.function, Over) else (args, options)


def _name_of(handler: type) -> str:
    return handler.__name__.lower()
