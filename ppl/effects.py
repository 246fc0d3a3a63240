"""What a program may do: sample, observe, factor, scan. NumPyro's primitives, and its message stack as the one door.

Every random draw, an algorithm's own included (`draw`), is a message that a handler can decide instead of the
generator. At run time this costs nothing: messages exist while JAX traces.
"""

import itertools
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax import Array, lax
from numpyro.contrib.control_flow import scan as numpyro_scan
from numpyro.primitives import _PYRO_STACK, Messenger, apply_stack

from posterity.ppl import component

SCAN = "state_space_scan"


class Scan(NamedTuple):
    """The arguments of one `po.scan`: the transition of a state-space program."""

    step: Callable
    init: Any
    xs: Any
    length: int
    until: Callable | None

    def ended(self, carry: Any) -> Array:
        """Whether this particle stops here: what `until` says, else whether all its components have ended."""
        if self.until is not None:
            ended = jnp.asarray(self.until(carry), bool)
            if ended.ndim:
                raise ValueError(f"scan: until must return one truth value a particle, it returned shape {ended.shape}")
            return ended
        parts = component.parts(carry)
        return jnp.all(jnp.stack([part.ended for part in parts])) if parts else jnp.zeros((), bool)


def sample(name: str, distribution: dist.Distribution, **options: Any) -> Any:
    """A random choice called `name` from a NumPyro distribution; `options` are those of `numpyro.sample`.

    Raises:
      RuntimeError: outside a program, where nothing says with which key to draw.

    >>> import numpyro.distributions as dist, posterity as po
    >>> @po.program
    ... def coin():
    ...     return po.sample("heads", dist.Bernoulli(0.5))
    """
    if not _PYRO_STACK and options.get("obs") is None and options.get("rng_key") is None:
        raise RuntimeError(
            f"sample({name!r}) stands outside any program: write it in a function decorated with @po.program and give that, called with its arguments, "
            "to an inference such as po.smc; or run the function under numpyro.handlers.seed"
        )
    return numpyro.sample(name, distribution, **options)


def observe(name: str, distribution: dist.Distribution, value: Any) -> Any:
    """Condition on `value` having come from `distribution`: multiplies the particle's weight by its density there."""
    if value is None:
        raise ValueError(f"observe({name!r}): value is None; give the observed value, or use sample() for a choice that is not observed")
    return numpyro.sample(name, distribution, obs=value)


def factor(name: str, log_potential: Any) -> None:
    """Multiply the particle's weight by exp(log_potential) (nats; -inf forbids, NaN and +inf are errors); an array counts by its sum."""
    numpyro.factor(name, log_potential)


def scan(step: Callable, init: Any, xs: Any = None, *, length: int | None = None, until: Callable | None = None) -> Any:
    """The steps of a state-space program: `carry = step(carry, x)` for every x along the leading axis of `xs`.

    What stands before `scan` in a program is its initial law; choices in `step` are its transition, observations and
    factors its potentials; those after it weigh a particle when it ends. The result is the last carry.

    Args:
      step: `step(carry, x) -> carry`, for a single particle; the carry keeps its structure, shapes and dtypes.
      init: the first carry, any pytree; it may hold components with their own batch behaviour (a language model's text).
      xs: per-step inputs, or None, then `x` is None and `length` is needed.
      length: the number of steps (the largest, when particles may stop earlier).
      until: `until(carry) -> bool`: a particle for which it holds after a step stands still from then on, at weight 1. By default
        a particle stops when all the components in its carry have ended, and otherwise only after `length` steps.

    Raises:
      ValueError: on a negative or missing length, or `xs` of unequal or other lengths.

    Under NumPyro's own handlers and kernels this is NumPyro's `scan`.
    """
    call = Scan(step, init, xs, _length(xs, length), until)
    if not _PYRO_STACK:
        return _by_numpyro(call)
    return apply_stack({"type": SCAN, "fn": _by_numpyro, "args": (call,), "kwargs": {}, "value": None})["value"]


def draw(key: Array, name: str, distribution: dist.Distribution) -> Any:
    """A random choice that an algorithm makes (ancestors, accept or reject), open to the same handlers as a program's."""
    return numpyro.sample(name, distribution, rng_key=key)


class Atomic:
    """A distribution that says itself what it can give: one whose values are trees, or whose support depends on its parameters."""

    def atoms(self) -> tuple[Any, Array]:
        """Values (a pytree with leading axis K; they may repeat) and their log probabilities [K], nats."""
        raise NotImplementedError


class AtScan(Messenger):
    """Hands the program's `scan` to `action(call)`, whose result the program goes on with."""

    def __init__(self, action: Callable[[Scan], Any]):
        super().__init__()
        self.action = action

    def process_message(self, msg: Any) -> None:
        if msg["type"] == SCAN:
            msg["value"] = self.action(*msg["args"])


class Forced(Messenger):
    """Puts the values given by name in the place of those drawn where `which` [] holds. For handlers within it they are as if drawn."""

    def __init__(self, given: dict[str, Any], which: Array):
        super().__init__()
        self.given, self.which = given, which

    def postprocess_message(self, msg: Any) -> None:
        if msg["type"] == "sample" and not msg["is_observed"] and msg["name"] in self.given:
            msg["value"] = jax.tree.map(lambda new, old: jnp.where(self.which, new, old), self.given[msg["name"]], msg["value"])
            msg["intermediates"] = []  # they are those of the value drawn


class Reached(Exception):
    """Leaves a program at its scan, the argument."""


class Decider(Messenger):
    """A handler that decides draws in place of the generator: the only kind that `isolated` lets see an algorithm's inside.

    Draws under branches and in loops are its to follow too, where the algorithm uses the doors `cond` and `loop`.
    """

    def follows(self, stack: list) -> bool:
        """Whether it sees what happens under these handlers."""
        return True

    def cond(self, predicate: Array, true: Callable, false: Callable, *operands: Any) -> Any:
        """What stands in for `lax.cond`."""
        return lax.cond(predicate, true, false, *operands)

    def loop(self, going: Callable[[Any], Array], body: Callable[[Any], Any], state: Any, limit: int) -> Any:
        """What stands in for `lax.while_loop`."""
        return lax.while_loop(going, body, state)


def cond(predicate: Array, true: Callable, false: Callable, *operands: Any) -> Any:
    """`lax.cond` for algorithms that draw inside a branch: a decider sees both branches' draws, and which branch counts."""
    deciders = _deciders(_PYRO_STACK)
    return deciders[0].cond(predicate, true, false, *operands) if deciders else lax.cond(predicate, true, false, *operands)


def loop(going: Callable[[Any], Array], body: Callable[[Any], Any], state: Any, *, limit: int) -> Any:
    """`lax.while_loop` of at most `limit` turns for algorithms that draw inside it, open to deciders turn by turn."""
    deciders = _deciders(_PYRO_STACK)
    return deciders[0].loop(going, body, state, limit) if deciders else lax.while_loop(going, body, state)


def followed() -> bool:
    """Whether a decider follows the draws made here: code that draws must not be compiled apart then."""
    return bool(_deciders(_PYRO_STACK))


def in_model() -> bool:
    """Whether handlers interpret what happens here as part of a model. Deciders do not (they see any code's draws), nor do those outside an inference."""
    here = itertools.takewhile(lambda handler: not isinstance(handler, isolated), reversed(_PYRO_STACK))
    return not all(isinstance(handler, Decider) for handler in here)


class isolated(Messenger):  # noqa: N801 - a handler, named as NumPyro names its own
    """Keeps what happens inside an inference away from the handlers around it, deciders excepted.

    Without it, a model that calls an inference under `handlers.trace` would record the particles' own sites.
    """

    def process_message(self, msg: Any) -> None:
        for decider in _deciders(_PYRO_STACK[: _PYRO_STACK.index(self)]):
            decider.process_message(msg)
        msg["stop"] = True


class Replay(Messenger):
    """Around a program's past, which is run again with its choices given: while `active`, no decider follows an inference in there."""

    def __init__(self, active: bool):
        super().__init__()
        self.active = active


def _deciders(stack: list) -> list[Decider]:
    """The deciders that a message passing up this stack meets, innermost first."""
    reached = itertools.takewhile(lambda handler: not _hides(handler), reversed(stack))
    return [handler for handler in reached if isinstance(handler, Decider) and handler.follows(stack)]


def _hides(handler: Messenger) -> bool:
    return isinstance(handler, numpyro.handlers.block) or (isinstance(handler, Replay) and handler.active)


def particle_map(function: Callable, in_axes: tuple[int | None, ...], out_axes: Any = 0) -> Callable:
    """`jax.vmap` over particles; a Python loop while a decider must see every particle's draws one by one."""
    if not followed():
        return jax.vmap(function, in_axes, out_axes)

    def loop(*batches):
        n = jax.tree.leaves(batches[in_axes.index(0)])[0].shape[0]
        arguments = [[b if axis is None else jax.tree.map(lambda x, i=i: x[i], b) for b, axis in zip(batches, in_axes, strict=True)] for i in range(n)]
        with jax.disable_jit(False):  # enumeration follows the algorithm's branches without jit; what a particle does has none, and is faster with it
            rows = [function(*row) for row in arguments]
        outputs = (rows,) if out_axes == 0 else zip(*rows, strict=True)
        gathered = [row[0] if axis is None else _stack(row) for row, axis in zip(outputs, out_axes or (0,), strict=True)]
        return tuple(gathered) if out_axes else gathered[0]

    return loop


def _stack(rows: Any) -> Any:
    return jax.tree.map(lambda *xs: jnp.stack([jnp.asarray(x) for x in xs]), *rows)


def _length(xs: Any, length: int | None) -> int:
    shapes = [jnp.shape(x) for x in jax.tree.leaves(xs)]
    if () in shapes:
        raise ValueError("scan: xs holds a scalar; every leaf needs a leading axis, one entry a step")
    lengths = {shape[0] for shape in shapes}
    if length is not None:
        try:
            lengths.add(operator.index(length))
        except TypeError as error:
            raise ValueError(f"scan: length must be a whole number, a static one, got {length!r}") from error
    if not lengths:
        raise ValueError("scan: give xs (one entry a step) or length (the number of steps)")
    if len(lengths) > 1:
        raise ValueError(f"scan: xs and length disagree about the number of steps: {sorted(lengths)}")
    (steps,) = lengths
    if steps < 0:
        raise ValueError(f"scan: length must be at least 0, got {steps}")
    return steps


class _Weighing(Messenger):
    """Observations count where `active` holds. Choices after a particle's end keep their law: gradients need a proper density."""

    def __init__(self, active: Array):
        super().__init__()
        self.active = active

    def process_message(self, msg: Any) -> None:
        if msg["type"] == "sample" and msg["is_observed"]:
            msg["fn"] = msg["fn"].mask(self.active)


def _by_numpyro(call: Scan) -> Any:
    """The same steps through NumPyro's `scan`: one particle, its components as batches of one."""
    if call.until is None and not component.parts(call.init):
        carry, _ = numpyro_scan(lambda carry, x: (call.step(carry, x), None), call.init, call.xs, length=call.length)
        return carry
    leaves, tree, sources = component.split(call.init)
    states = component.spawn(map(component.batch_of_one, leaves), sources, 1, call.length)

    def step(carry, x):
        states, ended = carry
        before = jax.tree.unflatten(tree, [component.first(view) for view in component.views(states)])
        with _Weighing(~ended):
            after = call.step(before, x)
        states = component.advance(states, [component.batch_of_one(leaf) for leaf in component.arrays(after)], sources, ~ended[None], jnp.ones(1, bool))
        return (states, ended | call.ended(after)), None

    (states, _), _ = numpyro_scan(step, (states, jnp.zeros((), bool)), call.xs, length=call.length)
    return jax.tree.unflatten(tree, [component.first(view) for view in component.results(states)])
