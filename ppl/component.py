"""State components that own their batch behaviour, such as a language model's text with its cache.

User code sees one particle: a `Component`, a small pytree (logits, tokens) that it reads and changes inside the vmapped
step. What is costly or shared between particles lives in a batch `State` that the step never sees. Between steps the
component's `Source` (which holds the weights) advances all particles in one call; `State.select` copies for ancestors.
So the cache is never vmapped, and no algorithm ever touches it.

A carry is handled as a list of leaves: arrays with leading axis n, and one `State` in the place of each component.
"""

import abc
from collections.abc import Iterable, Sequence
from typing import Any, Protocol, Self

import jax
import jax.numpy as jnp
from jax import Array


class Component(abc.ABC):
    """What one particle sees. Subclasses are pytrees of per-particle arrays; `source` is set where they are created and is no part of the tree."""

    source: "Source | None" = None

    ended: Array  # bool []: nothing more can happen to this component

    def complaint(self) -> str | None:
        """Why the batch behind this component, as queries see it, could not go on; None when nothing was wrong."""
        return None


class State(abc.ABC):
    """The batch behind n components, a pytree."""

    @abc.abstractmethod
    def view(self) -> Component:
        """The components, each leaf with leading axis n."""

    @abc.abstractmethod
    def result(self) -> Component:
        """The components as queries see them at the end, each leaf with leading axis n."""

    @abc.abstractmethod
    def select(self, ancestors: Array) -> Self:
        """The batch whose i-th member is a copy of member `ancestors[i]`."""

    def sound(self) -> Array | None:
        """Whether the batch could take its last step, bool []; None when nothing can stop it. Where False all particles stand still."""
        return None

    def mark(self) -> Any:
        """Where the members are now, arrays [n, ...], by which their source can `rewind` them.

        Raises:
          TypeError: when they keep no past to return to.
        """
        raise TypeError(f"a {type(self).__name__} cannot be rewound: it keeps no past to return to")


class Source(Protocol):
    """Makes and advances batches; a pytree of what all particles share (the model's weights, the prompt)."""

    def spawn(self, n: int, steps: int) -> State:
        """A batch of n fresh components with room for `steps` steps."""
        ...

    def advance(self, state: State, views: Any, active: Array) -> State:
        """The batch after one step, from what the step left in each component; rows where `active` [n] is False stand still."""
        ...


def is_component(x: Any) -> bool:
    """Whether a leaf of a carry is a component."""
    return isinstance(x, Component)


def leaves(carry: Any) -> list[Any]:
    """The leaves of a carry, components whole."""
    return jax.tree.leaves(carry, is_leaf=is_component)


def parts(carry: Any) -> list[Component]:
    """The components of a carry."""
    return [leaf for leaf in leaves(carry) if is_component(leaf)]


def split(carry: Any) -> tuple[list[Any], Any, list[Source | None]]:
    """Leaves (components whole), their tree, and each leaf's source (None for plain arrays)."""
    flat, tree = jax.tree.flatten(carry, is_leaf=is_component)
    sources = [_source(leaf) if is_component(leaf) else None for leaf in flat]
    return arrays(carry), tree, sources


def arrays(carry: Any) -> list[Any]:
    """The leaves of a carry, components whole and numbers as arrays."""
    return [leaf if is_component(leaf) else jnp.asarray(leaf) for leaf in leaves(carry)]


def spawn(flat: Iterable[Any], sources: Sequence[Source | None], n: int, steps: int) -> list[Any]:
    """Batches of n: leaves [n, ...] as they are, and in the places of components what their sources spawn."""
    return [leaf if source is None else source.spawn(n, steps) for leaf, source in zip(flat, sources, strict=True)]


def views(states: Sequence[Any]) -> list[Any]:
    """What each particle sees, with leading axis n."""
    return [state.view() if isinstance(state, State) else state for state in states]


def results(states: Sequence[Any]) -> list[Any]:
    """What queries see at the end, with leading axis n."""
    return [state.result() if isinstance(state, State) else state for state in states]


def advance(states: Sequence[Any], after: Sequence[Any], sources: Sequence[Source | None], active: Array, alive: Array) -> list[Any]:
    """Batches after a step that left `after` (leading axis n); rows that are not `active` [n] stand still, and components also where not `alive` [n]."""
    pairs = zip(states, after, sources, strict=True)
    return [_where(active, new, old) if source is None else source.advance(old, new, active & alive) for old, new, source in pairs]


def select(states: Sequence[Any], ancestors: Array) -> list[Any]:
    """Batches whose i-th member is a copy of member `ancestors[i]`."""
    return [state.select(ancestors) if isinstance(state, State) else state[ancestors] for state in states]


def marks(states: Sequence[Any]) -> list[Any]:
    """Where the members of batches are now: arrays as they are, and each `State.mark`."""
    return [state.mark() if isinstance(state, State) else state for state in states]


def rewind(states: Sequence[Any], marks: Sequence[Any], sources: Sequence[Any]) -> list[Any]:
    """Batches whose members are where they were at the `marks`."""
    return [source.rewind(state, mark) if isinstance(state, State) else mark for state, mark, source in zip(states, marks, sources, strict=True)]


def sound(states: Sequence[Any]) -> Array | None:
    """Whether all batches could take their last step, bool []; None when nothing can stop them."""
    found = [is_sound for state in states if isinstance(state, State) and (is_sound := state.sound()) is not None]
    return jnp.all(jnp.stack(found)) if found else None


def complaint(values: Any) -> str | None:
    """Why a batch among `values`, what queries see of components among them, could not go on; None when nothing was wrong."""
    return next((why for part in parts(values) if (why := part.complaint())), None)


def check_places(name: str, before: Sequence[Any], after: Sequence[Any]) -> None:
    """Raises ValueError when a step put a component in another's place: its batch state would not go with it."""
    arrays_of = [{id(x) for x in jax.tree.leaves(leaf)} if is_component(leaf) else set() for leaf in before]
    for own, leaf in zip(arrays_of, after, strict=True):
        found = {id(x) for x in jax.tree.leaves(leaf)} if is_component(leaf) else set()
        if own.isdisjoint(found) and any(not found.isdisjoint(other) for other in arrays_of):
            raise ValueError(f"{name}: the step moved a {type(leaf).__name__} to the place of another in its carry; each must stay in its own place")


def first(batch: Any) -> Any:
    """The first member of a batch."""
    return jax.tree.map(lambda x: x[0], batch)


def batch_of_one(leaf: Any) -> Any:
    """A batch with a single member."""
    return jax.tree.map(lambda x: jnp.asarray(x)[None], leaf)


def _where(active: Array, new: Array, old: Array) -> Array:
    return jnp.where(active.reshape(active.shape + (1,) * (old.ndim - 1)), new, old)


def _source(part: Component) -> Source:
    if part.source is None:
        raise ValueError(
            f"scan: a {type(part).__name__} in the first carry was copied or computed with before scan; "
            "pass it as it was created (in a tuple or dict if you like)"
        )
    return part.source
