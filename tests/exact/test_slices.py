"""Slice sampling leaves its target invariant: exactly, with finite laws in the place of the continuous draws.

All that a level decides is which points lie above it. So where densities are powers of two, it is enough to know how many halvings below the present density
it lies. And an interval that is drawn, stepped out and shrunk on a lattice treats its points as a continuous one treats their neighbourhoods: the
argument of Neal (2003) holds word for word for the counting measure. An ellipse becomes four points a quarter turn apart, which carry the product of a
symmetric law with itself as a circle carries that of two normal laws.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from numpyro.distributions import constraints
from numpyro.primitives import Messenger

import posterity as po
from posterity.inference.mcmc import slices
from posterity.inference.mcmc.paths import Path
from posterity.ppl.effects import Atomic
from posterity.tests.fixtures.finite import arrays
from posterity.tests.fixtures.posed import planted, posed

DEEPEST = 4  # halvings from the highest to below the lowest density
MOST = 4  # lattice points in an interval
SHALLOW, FIXED, TWICE = -3, -4, 1  # mistakes: a level half as far down; an interval that always begins at the present point; the normal law counted, too


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64():
        yield


class Finite(dist.Distribution, Atomic):
    """One number [1], of these with these probabilities."""

    support = constraints.real

    def __init__(self, values, probabilities):
        self.values, self.probabilities = values, probabilities
        super().__init__(batch_shape=(1,), event_shape=(), validate_args=False)

    def atoms(self):
        return self.values[:, None], jnp.log(self.probabilities)


def halvings(shallow):
    """How far below the density the level lies: an exponential law's whole part in units of log 2, and a half; where it is `shallow`, half as far."""
    count = jnp.arange(DEEPEST + 1)
    return Finite(jnp.where(shallow, 0.5, 1.0) * (count + 0.5) * math.log(2), jnp.append(0.5 ** (count[:-1] + 1), 0.5**DEEPEST))


def between(low, high, spacing, shift):
    """Uniformly one of the points spacing * (k + shift) between two ends; there are at most four (and none on branches that are not taken)."""
    points = spacing * (jnp.floor(low / spacing - shift + 1e-9) + 1 + shift + jnp.arange(MOST))
    inside = (points < high - 1e-9).at[0].set(True)
    return Finite(points, inside / jnp.sum(inside))


class OnTheLattice(Messenger):
    """Gives a slice sampler's draws laws on a lattice of points `spacing` apart; intervals end halfway between two of them, or at one that was refused."""

    def __init__(self, spacing, fault):
        super().__init__()
        self.spacing, self.fault = spacing, fault

    def process_message(self, msg):
        name = msg.get("name")
        if name == "level":
            msg["fn"] = halvings(self.fault == SHALLOW)
        if name in ("place", "angle", "point"):
            low, high = msg["fn"].support.lower_bound, msg["fn"].support.upper_bound
            low = jnp.where((name != "point") & (self.fault == FIXED), high - self.spacing, low)
            msg["fn"] = between(low, high, self.spacing, 0.0 if name == "point" else 0.5)


def on_the_lattice(kernel, spacing, *faults):
    planted_kernel = planted(kernel, *faults)

    def move(key, target, particles):
        with OnTheLattice(spacing, target.fault):
            return planted_kernel(key, target, particles)

    return move


def log_table(points, masses, value):
    """The log mass of the point at, or next below, a value; -inf where there is none."""
    place = jnp.searchsorted(points, value + 1e-6, side="right") - 1
    known = (place >= 0) & (value < points[-1] + 1)
    return jnp.where(known, jnp.log(jnp.asarray(masses))[jnp.maximum(place, 0)], -jnp.inf)


class Places(dist.Distribution, Atomic):
    """The numbers 0, 1, 2 and 3 with these masses; between two of them the density is that of the lower, as ends of intervals are judged by."""

    support = constraints.real
    pytree_data_fields = ("masses",)

    def __init__(self, masses, *, validate_args=None):
        self.masses = masses
        super().__init__(batch_shape=(), event_shape=(), validate_args=False)

    def atoms(self):
        return jnp.arange(4.0), jnp.log(self.masses)

    def sample(self, key, sample_shape=()):
        return dist.Categorical(self.masses).sample(key, sample_shape).astype(float)

    def log_prob(self, value):
        return log_table(jnp.arange(4.0), self.masses, value)


@po.program
def line(masses, potential):
    x = po.sample("x", Places(masses))
    po.factor("potential", jnp.log(potential)[jnp.clip(jnp.floor(x + 1e-6), 0, 3).astype(int)])
    return x


POINTS, SHARES = np.array([-2.0, -1.0, 1.0, 2.0]), np.array([1.0, 2.0, 2.0, 1.0]) / 6


class Symmetric(dist.Normal, Atomic):
    """A stand-in for a normal law: masses on both sides of its mean alike, so that two independent ones together do not change when turned by 90 degrees."""

    def atoms(self):
        return self.loc + POINTS, jnp.log(SHARES)

    def log_prob(self, value):
        return log_table(POINTS, SHARES, value - self.loc)


@po.program
def normal(first, potential, last):
    """A choice of normal law whose mean hangs on the choice before it, and on which the one after it hangs."""
    a = po.sample("a", dist.Categorical(first))
    x = po.sample("x", Symmetric(2.0 * a, 1.0))
    place = jnp.argmin(jnp.abs(x - 2.0 * a - POINTS))
    po.factor("potential", jnp.log(potential)[a, place])
    return a, x, po.sample("b", dist.Categorical(last[place]))


LINE = line(*arrays([0.25, 0.0, 0.25, 0.5], [4.0, 1.0, 0.25, 0.25]))  # nothing between two modes
NORMAL = normal(
    *arrays([0.5, 0.5], [[1.0, 0.25, 1.0, 0.25], [0.25, 0.25, 0.25, 1.0]], [[0.5, 0.25, 0.25], [0.25, 0.5, 0.25], [0.5, 0.25, 0.25], [0.25, 0.25, 0.5]])
)


def twice(wrong, log_law):
    return lambda *given: jnp.where(wrong, 0.0, log_law(*given))


KERNELS = {
    "slices": (on_the_lattice(po.kernels.slices(width=2.0), 1.0), LINE, FIXED, "whose interval always begins at the present point"),
    "elliptical": (
        on_the_lattice(po.kernels.elliptical("x"), math.pi / 2, (slices, "_log_law", twice)),
        NORMAL,
        TWICE,
        "whose level counts the normal law, too",
    ),
}


@pytest.mark.parametrize("name", KERNELS)
def test_slices_leave_powers_of_the_likelihood_invariant(laws, name, monkeypatch):
    monkeypatch.setattr(slices, "OUT", 2)
    monkeypatch.setattr(slices, "IN", MOST - 1)  # whoever has refused three of four points stays
    kernel, program, fault, mistaken = KERNELS[name]
    target = Path(program, 1)
    for exponent in (1.0, 0.5):
        laws.holds(f"kernel: {name}", po.check.invariant(kernel, posed(target, exponent=exponent)))
    laws.fails(f"{name} with a level half as far down", po.check.invariant(kernel, posed(target, exponent=1.0, fault=SHALLOW)))
    laws.fails(f"{name} {mistaken}", po.check.invariant(kernel, posed(target, exponent=1.0, fault=fault)))
