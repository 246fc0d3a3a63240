"""`@program` makes a program of a function of a single particle, written with NumPyro distributions: a batch that meets the `Program` protocol."""

import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array
from jaxtyping import Bool, Float, Int, PRNGKeyArray
from numpyro import handlers
from numpyro.distributions import constraints

from posterity.ppl import component
from posterity.ppl.effects import AtScan, Forced, Reached, Replay, Scan, in_model, isolated, particle_map
from posterity.ppl.errors import Located, check_carry, log_density, same_for_all
from posterity.ppl.protocol import Program, choices_of, is_program, runs_on_host  # noqa: F401 - who has a program finds its protocol here too
from posterity.ppl.randomness import with_own_key

if TYPE_CHECKING:
    from posterity.ppl.describe import Description


@struct.dataclass
class Particles:
    """The particles of a program made from a function."""

    choices: dict[str, Any]  # the initial law's choices, pytrees [n, ...]
    carry: list[Any]  # the scan's carry as leaves [n, ...], a component's batch state in its place; empty without scan
    time: Int[Array, ""] | Int[Array, " n"]  # steps made: one number when per-step inputs drive all particles together
    ended: Bool[Array, " n"]


@jax.tree_util.register_pytree_node_class
class FunctionProgram:
    """A function of one particle with its arguments, as a batched program. Calling it runs it as a NumPyro model."""

    def __init__(self, function: Callable, tree: Any, leaves: list[Any], dynamic: tuple[bool, ...]):
        self.function, self.tree, self.leaves, self.dynamic = function, tree, leaves, dynamic

    def __call__(self) -> Any:
        args, options = self.arguments
        return self.function(*args, **options)

    def __repr__(self) -> str:
        return f"<program {self.name}>"

    @property
    def arguments(self) -> tuple[tuple, dict]:
        """What the function is called with."""
        return jax.tree.unflatten(self.tree, self.leaves)

    @property
    def name(self) -> str:
        """The function's; for a program over programs theirs too, as in `adapt(walk)`."""
        own = getattr(self.function, "__name__", type(self.function).__name__).lstrip("_")
        inner = [x.name for x in jax.tree.leaves(self.arguments, is_leaf=lambda x: isinstance(x, FunctionProgram)) if isinstance(x, FunctionProgram)]
        return f"{own}({', '.join(inner)})" if inner else own

    def describe(self) -> "Description":
        """The program's structure, as a table: see `posterity.describe`."""
        from posterity.ppl.describe import describe  # which needs this module

        return describe(self)

    # -- the protocol ------------------------------------------------------------------------------------------------

    @property
    def length(self) -> int:
        reached: list[Scan] = []
        with handlers.block():
            jax.eval_shape(lambda key: self._begin(key, reached) and None, jax.random.key(0))
        return reached[0].length if reached else 0

    def init(self, key: PRNGKeyArray, n: int) -> tuple[Particles, Float[Array, " n"]]:
        reached: list[Scan] = []

        def begin(key):
            sites = self._begin(key, reached)
            flat, _, sources = component.split(reached[-1].init if reached else ())
            plain = [None if component.is_component(leaf) else leaf for leaf in flat]
            return _choices(sites), plain, _log_potential(sites), sources

        with same_for_all(f"{self.name}: a component (a text, say) was started from a value that differs between particles; all particles share one start"):
            choices, plain, log_potential, sources = particle_map(with_own_key(begin), (None, 0), (0, 0, 0, None))(key, jnp.arange(n))
        length, driven = (reached[-1].length, reached[-1].xs is not None) if reached else (0, True)
        carry = component.spawn(plain, sources, n, length)
        return Particles(choices, carry, jnp.zeros(() if driven else n, jnp.int32), jnp.full(n, length == 0)), log_potential

    def step(self, key: PRNGKeyArray, particles: Particles, *, where: Bool[Array, " n"] | None = None) -> tuple[Particles, Float[Array, " n"]]:
        return self.told(key, particles, where=where)[:2]

    def told(
        self,
        key: PRNGKeyArray,
        particles: Particles,
        given: dict[str, Any] | None = None,
        *,
        which: Bool[Array, " n"] | None = None,
        where: Bool[Array, " n"] | None = None,
    ) -> tuple:
        """`step` with the choices `given`, [n, ...] by name, and fresh ones otherwise; also tells all choices, and the log density [n] (nats) of those given.

        With None for `given` nothing more is told than a step does. With `which`, only those particles make the choices given, the others fresh
        ones, and the log density is that of all their choices.
        """
        together = particles.time.ndim == 0
        if where is not None and together:
            raise ValueError(f"{self.name}: particles driven by per-step inputs (xs) move together; `where` needs a scan without xs")
        active = ~particles.ended if where is None else ~particles.ended & where

        def one(key, choices, leaves, time, active, given, which):
            def at_scan(scan: Scan, sites: dict):
                _, tree, sources = component.split(scan.init)
                before = jax.tree.unflatten(tree, leaves)
                x = None if scan.xs is None else jax.tree.map(lambda x: jnp.asarray(x)[time], scan.xs)
                giving = handlers.substitute(data=given or {}) if which is None else Forced(given or {}, which)
                with giving, handlers.trace() as step_sites:
                    after = _as_wide_as(before, scan.step(before, x))
                check_carry(self.name, before, after)
                ended = scan.ended(after) | (time + 1 >= scan.length)
                drawn = {} if given is None else _choices(step_sites)
                log_prior = jnp.zeros(()) if given is None else _log_prior(step_sites, given if which is None else drawn)
                moved.append((component.arrays(after), ended, _log_potential(step_sites), sources, set(sites), drawn, log_prior))
                return after

            moved: list[tuple] = []
            sites = self._execute(key, choices, at_scan, replay=True)[0]
            ((after, ended, log_potential, sources, before_end, drawn, log_prior),) = moved
            at_end = {name: site for name, site in sites.items() if name not in before_end}
            if _choices(at_end):
                raise ValueError(f"{self.name}: sample after scan is not supported ({', '.join(_choices(at_end))}); draw it in the step, or before the scan")
            log_potential = log_potential + jnp.where(ended, _log_potential(at_end), 0.0)
            return after, ended, jnp.where(active, log_potential, 0.0), sources, drawn, jnp.where(active, log_prior, 0.0)

        batched = particle_map(with_own_key(one), (None, 0, 0, 0, None if together else 0, 0, 0, 0), (0, 0, 0, None, 0, 0))
        after, ended, log_potential, sources, drawn, log_prior = batched(
            key, jnp.arange(active.shape[0]), particles.choices, component.views(particles.carry), particles.time, active, given, which
        )
        # What no weight can bring back need not be carried on: a language model reads on in none of the texts that a constraint has just forbidden.
        carry = component.advance(particles.carry, after, sources, active, ~jnp.isneginf(log_potential))
        if (sound := component.sound(carry)) is not None:
            log_potential = jnp.where(sound, log_potential, jnp.nan)  # algorithms stop at a potential that is no number
        time = particles.time + (1 if together else active.astype(jnp.int32))
        return Particles(particles.choices, carry, time, particles.ended | (active & ended)), log_potential, drawn, log_prior

    def select(self, particles: Particles, ancestors: Int[Array, " m"]) -> Particles:
        time = particles.time[ancestors] if particles.time.ndim else particles.time
        choices = jax.tree.map(lambda x: x[ancestors], particles.choices)
        return Particles(choices, component.select(particles.carry, ancestors), time, particles.ended[ancestors])

    def mark(self, particles: Particles) -> Particles:
        """Where the particles are now, with a time of each one's own: after a `rewind` they no longer move together."""
        time = jnp.broadcast_to(particles.time, particles.ended.shape)
        return Particles(particles.choices, component.marks(particles.carry), time, particles.ended)

    def rewind(self, particles: Particles, marks: Particles) -> Particles:
        """The particles where each was at its own of the `marks`: components by what they remember, the rest as it was marked."""

        def found(_, choices):
            reached: list[Scan] = []
            self._begin(jax.random.key(0), reached, choices)  # all choices are given: the key is idle
            return (component.split(reached[-1].init)[2] if reached else [],)

        (sources,) = particle_map(found, (0, 0), (None,))(particles.ended, particles.choices)
        return Particles(marks.choices, component.rewind(particles.carry, marks.carry, sources), marks.time, marks.ended)

    def laws(self, particles: Particles) -> dict[str, Any]:
        """The distributions of a step's choices by name, for their shapes and supports alone: what they hold is being traced."""
        found: dict[str, Any] = {}

        def look(choices, leaves):
            def at_scan(scan: Scan, sites: dict):
                before = jax.tree.unflatten(component.split(scan.init)[1], leaves)
                x = None if scan.xs is None else jax.tree.map(lambda x: jnp.asarray(x)[0], scan.xs)
                with handlers.trace() as step_sites:
                    after = scan.step(before, x)
                found.update({name: step_sites[name]["fn"] for name in _choices(step_sites) if step_sites[name]["type"] == "sample"})
                return after

            self._execute(jax.random.key(0), choices, at_scan, replay=True)

        with handlers.block():  # nothing is drawn
            jax.eval_shape(look, *(component.first(x) for x in (particles.choices, component.views(particles.carry))))
        return found

    def done(self, particles: Particles) -> Bool[Array, " n"]:
        return particles.ended

    def choices(self, particles: Particles) -> dict[str, Any]:
        return particles.choices

    def value(self, particles: Particles) -> Any:
        def finish(_, choices, leaves):
            def at_scan(scan: Scan, sites: dict):
                return jax.tree.unflatten(component.split(scan.init)[1], leaves)

            return jax.tree.map(jnp.asarray, self._execute(jax.random.key(0), choices, at_scan, replay=True)[1])  # all choices are given: the key is idle

        # `ended` is there for programs that have neither choices nor a carry: it says how many particles there are.
        return particle_map(finish, (0, 0, 0))(particles.ended, particles.choices, component.results(particles.carry))

    # -- one particle ------------------------------------------------------------------------------------------------

    def _begin(self, key: Array, reached: list[Scan], given: dict[str, Any] | None = None) -> dict:
        """Runs the initial law, with all its choices `given` or fresh ones: its sites. The scan is added to those `reached`; one of no steps is passed."""

        def at_scan(scan: Scan, sites: dict):
            reached.append(scan)
            if scan.length:
                raise Reached
            return scan.init

        return self._execute(key, given or {}, at_scan, replay=given is not None)[0]

    def _execute(self, key: Array, choices: dict[str, Any], at_scan: Callable[[Scan, dict], Any], *, replay: bool = False) -> tuple[dict, Any]:
        """Runs the function with the given choices and fresh ones otherwise; `at_scan(scan, sites so far)` stands in for its scan.

        A replay is given all choices before the scan.
        """
        located, past = Located(self.name), Replay(replay)

        def once(scan: Scan):
            if located.part != "initial law":
                raise ValueError(f"{self.name}: a program has one scan; write a nested loop as a single scan, or unroll it inside the step")
            located.part, past.active = "step", False
            carry = at_scan(scan, sites)
            located.part = "end"
            return carry

        with isolated(), past, handlers.trace() as sites, handlers.seed(rng_seed=key), handlers.substitute(data=choices), located, AtScan(once):
            try:
                return sites, self()
            except Reached:
                return sites, None

    # -- a pytree: arrays and floats are leaves, everything else is static -----------------------------------------------

    def tree_flatten(self):
        arrays = [leaf for leaf, dynamic in zip(self.leaves, self.dynamic, strict=True) if dynamic]
        static = tuple(None if dynamic else leaf for leaf, dynamic in zip(self.leaves, self.dynamic, strict=True))
        return arrays, (self.function, self.tree, static, self.dynamic)

    @classmethod
    def tree_unflatten(cls, aux, arrays):
        function, tree, static, dynamic = aux
        rest = iter(arrays)
        return cls(function, tree, [next(rest) if d else leaf for d, leaf in zip(dynamic, static, strict=True)], dynamic)


class Definition:
    """A program's definition: call it with arguments to get the `Program`. Under NumPyro's handlers the call runs the model instead."""

    def __init__(self, function: Callable):
        functools.update_wrapper(self, function)
        self.function = function
        self.name = getattr(function, "__name__", type(function).__name__)

    def __call__(self, *args: Any, **options: Any) -> Any:
        if in_model():
            return self.function(*args, **options)
        return self.bind(*args, **options)

    def bind(self, *args: Any, **options: Any) -> FunctionProgram:
        """The program with these arguments, also inside a model (where a plain call would run it in place).

        Raises:
          TypeError: when the arguments do not fit the function, or one is neither an array, a number nor hashable.
        """
        try:
            inspect.signature(self.function).bind(*args, **options)
        except TypeError as error:
            raise TypeError(f"{self.name}: {error}") from None
        leaves, tree = jax.tree.flatten((args, options))
        dynamic = tuple(isinstance(leaf, (jax.Array, np.ndarray, np.generic, float, complex)) for leaf in leaves)
        for leaf, is_array in zip(leaves, dynamic, strict=True):
            if not is_array and getattr(leaf, "__hash__", None) is None:
                raise TypeError(f"{self.name}: an argument holds a {type(leaf).__name__}, which is neither an array, a number nor hashable")
        return FunctionProgram(self.function, tree, leaves, dynamic)

    def __repr__(self) -> str:
        return f"<definition of program {self.name}>"


def program(function: Callable) -> Definition:
    """Makes a program of a function of one particle, written with NumPyro distributions.

    The function's arguments are its data: arrays and floats become leaves of the program (other values of the same
    shape do not recompile anything), everything else (int, str, bool, callables) is static and part of the compiled code.

    >>> import jax, numpyro.distributions as dist, posterity as po
    >>> @po.program
    ... def coin(flips):
    ...     p = po.sample("p", dist.Beta(1.0, 1.0))
    ...     po.observe("flips", dist.Bernoulli(p), flips)
    ...     return p
    >>> posterior = po.importance(jax.random.key(0), coin(jax.numpy.ones(3)), n=1_000)
    >>> bool(abs(posterior.expect() - 0.8) < 0.05)
    True
    """
    return Definition(function)


def _as_wide_as(before: Any, after: Any) -> Any:
    """In 64 bits (as `exact` works), choices of 64 bits meet carries that start with an explicit 32: those stay what they were."""
    if not jax.config.jax_enable_x64 or jax.tree.structure(before) != jax.tree.structure(after):  # pyright: ignore[reportAttributeAccessIssue]
        return after
    twins = {("int32", "int64"), ("int64", "int32"), ("float32", "float64"), ("float64", "float32")}

    def alike(b: Any, a: Any) -> Any:
        plain = not component.is_component(b) and not component.is_component(a)
        return jnp.asarray(a, jnp.result_type(b)) if plain and (jnp.result_type(b).name, jnp.result_type(a).name) in twins else a

    return jax.tree.map(alike, before, after, is_leaf=component.is_component)


def as_program(x: Any) -> Program:
    """The program that x is, or that a definition without arguments makes.

    Raises:
      TypeError: when x is neither.
    """
    if isinstance(x, Definition):
        return x.bind()
    if not is_program(x):
        wanted = "a Program (a function decorated with @po.program, called with its arguments; inside another model, its .bind(...))"
        raise TypeError(f"program must be {wanted}, got {type(x).__name__}")
    return x


def _choices(sites: dict) -> dict[str, Any]:
    """The random choices: unobserved samples, and which rows a plate took when it subsamples."""
    drawn = {name: site for name, site in sites.items() if (site["type"] == "sample" and not site["is_observed"]) or _subsamples(site)}
    return {name: jax.tree.map(jnp.asarray, site["value"]) for name, site in drawn.items()}


def _subsamples(site: dict) -> bool:
    return site["type"] == "plate" and site["args"][1] is not None and site["args"][1] < site["args"][0]


def _log_prior(sites: dict, given: dict[str, Any]) -> Float[Array, ""]:
    """The summed log density of the choices among the `given` names, nats; -inf where one is outside its support (NumPyro's may be anything there)."""
    known = [site for name, site in sites.items() if name in given and site["type"] == "sample"]
    inside = [jnp.all(site["fn"].support(site["value"])) for site in known if not constraints.is_dependent(site["fn"].support)]
    return jnp.where(jnp.all(jnp.array(inside, bool)), sum((log_density(site) for site in known), jnp.zeros(())), -jnp.inf)


def _log_potential(sites: dict) -> Float[Array, ""]:
    """The summed log density of the observed sites (factors are observed sites), nats."""
    return sum((log_density(site) for site in sites.values() if site["type"] == "sample" and site["is_observed"]), jnp.zeros(()))
