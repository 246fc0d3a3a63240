"""State components: a batch behind the particles, advanced once a step, copied by its own `select`.

The component here keeps a notebook: particles write numbers, the batch stores them and shows their weighted sum. Beside
it, each particle keeps the same numbers in a plain array, so that every copy and every standstill can be compared.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from flax import struct
from jax import Array
from numpyro import handlers

import posterity as po
from posterity.inference.enumeration.outcomes import outcomes
from posterity.ppl import component

STEPS, N = 4, 6


@struct.dataclass
class Notes(component.Component):
    total: Array  # what the batch says: scale times the sum of all numbers written
    written: Array  # what this step wrote
    ended: Array
    numbers: Array | None = None  # in the result
    advances: Array | None = None  # in the result: how many batched calls there were

    def write(self, number):
        return self.replace(written=jnp.asarray(number, float))


@struct.dataclass
class Notebooks(component.State):
    notes: Notes
    numbers: Array  # [n, steps]
    length: Array  # [n]
    advances: Array  # []
    scale: Array  # [], the source's own array

    def view(self):
        return self.notes

    def result(self):
        return self.notes.replace(numbers=self.numbers, advances=jnp.full(len(self.length), self.advances))

    def select(self, ancestors):
        copied = jax.tree.map(lambda x: x[ancestors], (self.notes, self.numbers, self.length))
        return Notebooks(*copied, self.advances, self.scale)


@struct.dataclass
class Shelf:
    """The source: what it shares is the scale."""

    scale: Any

    def open(self):
        notes = Notes(jnp.zeros(()), jnp.zeros(()), jnp.zeros((), bool))
        object.__setattr__(notes, "source", self)
        return notes

    def spawn(self, n, steps):
        notes = jax.tree.map(lambda x: jnp.broadcast_to(x, (n, *x.shape)), self.open())
        return Notebooks(notes, jnp.zeros((n, steps)), jnp.zeros(n, int), jnp.zeros((), int), jnp.asarray(self.scale))

    def advance(self, state, views, active):
        rows = jnp.arange(len(active))
        numbers = jnp.where(active[:, None], state.numbers.at[rows, state.length].set(views.written), state.numbers)
        length = state.length + active
        total = jnp.where(active, self.scale * numbers.sum(axis=1), state.notes.total)
        return Notebooks(Notes(total, jnp.zeros(len(active)), views.ended), numbers, length, state.advances + 1, state.scale)


@po.program
def writing(scale):
    """Two notebooks in a dict beside plain state; particles stop at different times, and differ in weight."""
    shelf = Shelf(scale)
    first, second = shelf.open(), Shelf(-scale).open()

    def step(carry, _):
        x = po.sample("x", dist.Normal(0.0, 1.0))
        t = carry["time"]
        po.factor("weight", x)
        seen = carry["seen"].at[t].set(carry["books"]["first"].total)
        books = {"first": carry["books"]["first"].write(x), "second": carry["books"]["second"].write(10 * x)}
        return {"time": t + 1, "mine": carry["mine"].at[t].set(x), "seen": seen, "books": books}

    zeros = jnp.zeros(STEPS)
    carry = {"time": 0, "mine": zeros, "seen": zeros, "books": {"first": first, "second": second}}
    return po.scan(step, carry, length=STEPS, until=lambda carry: carry["mine"][carry["time"] - 1] > 0.8)


@pytest.fixture(scope="module")
def run():
    return po.smc(jax.random.key(1), writing(2.0), n=N, threshold=1)


def test_copies_follow_their_particles(run):
    assert run.resampled[1:].sum() >= 2
    assert len(set(np.asarray(run.eves))) < N
    np.testing.assert_array_equal(run.values["books"]["first"].numbers, run.values["mine"])


def test_components_in_one_carry_do_not_mix(run):
    np.testing.assert_allclose(run.values["books"]["second"].numbers, 10 * run.values["mine"], rtol=1e-6)
    np.testing.assert_allclose(run.values["books"]["second"].total, -20 * run.values["mine"].sum(axis=1), rtol=1e-5)


def test_a_step_sees_what_the_batch_made_of_the_steps_before(run):
    before = np.cumsum(np.asarray(run.values["mine"]), axis=1) - np.asarray(run.values["mine"])
    made = np.arange(STEPS) < np.asarray(run.values["time"])[:, None]
    np.testing.assert_allclose(run.values["seen"], np.where(made, 2 * before, 0), atol=1e-5)


def test_the_batch_advances_once_a_step(run):
    assert set(np.asarray(run.values["books"]["first"].advances)) == {int(run.steps)}


def test_standing_particles_are_untouched(run):
    ended = np.asarray(run.values["time"])
    assert len(set(ended)) > 1  # they stop at different times
    for numbers, time in zip(np.asarray(run.values["books"]["first"].numbers), ended):
        assert (numbers[:time] != 0).all()
        assert (numbers[time:] == 0).all()
        assert (numbers[: time - 1] <= 0.8).all()


def test_the_source_keeps_its_arrays_when_steps_are_compiled_one_by_one(run):
    program = writing(jnp.asarray(2.0))  # its array goes into the batch, whose buffers are given away at every step
    for _ in range(2):
        stepwise = po.smc(jax.random.key(1), program, n=N, threshold=1, progress=True)
        np.testing.assert_array_equal(stepwise.values["mine"], run.values["mine"])


def test_the_same_component_under_numpyro():
    with handlers.trace() as sites, handlers.seed(rng_seed=3):
        carry = writing(2.0)
    time = int(carry["time"])
    np.testing.assert_array_equal(carry["mine"][:time], sites["x"]["value"][:time])
    np.testing.assert_array_equal(carry["books"]["first"].numbers, carry["mine"])


def test_components_under_enumeration():
    @po.program
    def coins():
        def step(notes, _):
            return notes.write(po.sample("x", dist.Bernoulli(0.25)))

        return po.scan(step, Shelf(1.0).open(), length=2)

    found = {tuple(o.result.values.numbers[0].tolist()): o.probability for o in outcomes(lambda: po.importance(jax.random.key(0), coins(), n=1))}
    assert found == pytest.approx({(0, 0): 0.5625, (0, 1): 0.1875, (1, 0): 0.1875, (1, 1): 0.0625})


def test_a_component_changed_before_the_scan_is_refused():
    @po.program
    def hasty():
        return po.scan(lambda notes, _: notes, Shelf(1.0).open().write(1.0), length=2)

    with pytest.raises(ValueError, match="a Notes in the first carry was copied or computed with before scan"):
        po.smc(jax.random.key(0), hasty(), n=2)


def test_a_start_that_differs_between_particles_is_refused():
    @po.program
    def several():
        return po.scan(lambda notes, _: notes, Shelf(po.sample("scale", dist.Normal(0.0, 1.0))).open(), length=2)

    with pytest.raises(ValueError, match="all particles share one start"):
        po.smc(jax.random.key(0), several(), n=2)


def test_a_step_returns_the_component():
    @po.program
    def careless():
        return po.scan(lambda notes, _: notes.total, Shelf(1.0).open(), length=2)

    with pytest.raises(TypeError, match=r"carry was Notes and came out of the step as float32\[.*\]: return the Notes itself"):
        po.smc(jax.random.key(0), careless(), n=2)


@po.program
def forbidding(scale):
    """A notebook, and a number that forbids every other particle on the way."""

    def step(carry, _):
        x = po.sample("x", dist.Bernoulli(0.2))
        po.factor("allowed", jnp.where(x == 1, -jnp.inf, 0.0))
        return {"book": carry["book"].write(1.0), "forbidden": carry["forbidden"] + x}

    return po.scan(step, {"book": Shelf(scale).open(), "forbidden": 0}, length=STEPS)


def test_components_of_forbidden_particles_are_not_carried_on():
    run = po.importance(jax.random.key(0), forbidding(1.0), n=20)
    forbidden = np.asarray(run.values["forbidden"])
    assert 0 < (forbidden > 0).sum() < 20
    np.testing.assert_array_equal(run.values["book"].numbers.sum(axis=1), STEPS - forbidden)
