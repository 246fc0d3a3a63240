"""Conditional resampling: particle 0 keeps slot 0, and the others are drawn as they are given that it does.

Let a scheme's ancestors fall into the slots by a uniform rotation (those drawn independently: in any order), so that each slot
has ancestor i with probability W_i. Each class here is the law of these ancestors given A_0 = 0 (Chopin and Singh 2015; for
killing also Karppinen, Singh and Vihola 2022): counts weighed by the copies of 0. That is what conditional SMC needs, and why
"systematic, but keep particle 0" is wrong.
"""

import itertools

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int, PRNGKeyArray, UInt

from posterity.inference.smc.resampling.conditional_ssp import ConditionalSSP
from posterity.inference.smc.resampling.quotas import Quotas, quotas, real, relative, running_sum
from posterity.inference.smc.resampling.schemes import (
    Ancestors,
    Killing,
    Systematic,
    ancestors,
    below_draws,
    below_strata,
    independent,
    overlaps,
    portions,
    random_bits,
    repeated,
    uniforms,
)


class ConditionalMultinomial(Ancestors):
    """Slot 0 keeps particle 0, the others are drawn independently by the weights (Andrieu, Doucet and Holenstein 2010), and sorted."""

    def _draw(self, key):
        return keeping(ancestors([below_draws(key, self.quotas.ends, self.size - 1, self.size)], self.size))

    def _atoms(self):
        vectors, probabilities = independent(jnp.broadcast_to(portions(relative(self.log_weights)), (self.size - 1, self.size)))
        return jnp.pad(jnp.sort(vectors, axis=1), ((0, 0), (1, 0))), probabilities


class ConditionalResidual(Ancestors):
    """`Residual`, given that slot 0 has a copy of particle 0: one of its whole copies, or one that was drawn."""

    def _draw(self, key):
        which_key, draw_key = jax.random.split(key)
        whole, part = self.quotas
        certain = uniforms(which_key, self.log_weights, ()) * (whole[0] + real(part[0])) < whole[0]
        ends = Quotas(jnp.zeros_like(whole), part).ends
        drawn = below_draws(draw_key, ends, ends.whole[-1] - ~certain, ends.whole[-1])
        return keeping(ancestors([running_sum(whole.at[0].add(-certain.astype(jnp.int32))) + drawn], self.size))

    def _atoms(self):
        n, (whole, part) = self.size, self.quotas
        vectors, probabilities = independent(jnp.broadcast_to(portions(real(part)), (n, n)))

        def given(certain):
            drawn = jnp.arange(n) < n - jnp.sum(whole) - (1 - certain)
            return jax.vmap(lambda vector: keeping(repeated(whole.at[0].add(-certain).at[vector].add(drawn))))(vectors)

        chance = portions(jnp.stack([real(part[0]), whole[0].astype(real(part).dtype)]))
        return jnp.concatenate([given(0), given(1)]), (chance[:, None] * probabilities).reshape(-1)


class ConditionalSystematic(Ancestors):
    """`Systematic`, given that slot 0 has a copy of particle 0: its point is uniform in what particle 0 takes up."""

    def _draw(self, key):
        return self._at(*inside(key, *(x[0] for x in self.quotas)))

    def _at(self, cell: Int[Array, ""], point: UInt[Array, ""]) -> Int[Array, " n"]:
        """With slot j's point at j + cell + point / unit, modulo n."""
        return jnp.roll(Systematic(self.log_weights)._at(~point), -cell).at[0].set(0)

    def _atoms(self):
        n, (whole, part) = self.size, self.quotas
        edges = jnp.sort(jnp.append(self.quotas.ends.part, jnp.zeros((), part.dtype)))
        widths = jnp.diff(real(edges), append=1.0)
        cells, places = jnp.meshgrid(jnp.arange(n), jnp.arange(n + 1), indexing="ij")
        held = (cells < whole[0]) | ((cells == whole[0]) & (edges[places] < part[0]))
        vectors = jax.vmap(self._at)(cells.reshape(-1), edges[places].reshape(-1))
        return vectors, portions(jnp.where(held, widths[places], 0.0).reshape(-1))


class ConditionalStratified(Ancestors):
    """`Stratified`, with the particles rotated at random before, given that slot 0 has a copy of particle 0."""

    def _draw(self, key):
        turn_key, inside_key, points_key = jax.random.split(key, 3)
        turn = jax.random.randint(turn_key, (), 0, self.size)
        due = quotas(jnp.roll(self.log_weights, turn))
        whole, part = (x[turn] for x in due)
        ends = due.ends
        cell, point = inside(inside_key, whole, part)
        below = ends.part[turn] - part  # where particle 0 begins
        start = ends.whole[turn] - whole - (ends.part[turn] < part)
        cell = start + cell + (below + point < below)
        points = random_bits(points_key, self.log_weights, (self.size,)).at[cell].set(below + point)
        return self._at(turn, cell, ancestors([below_strata(ends, points)], self.size))

    def _at(self, turn: Int[Array, ""], cell: Int[Array, ""], drawn: Int[Array, " n"]) -> Int[Array, " n"]:
        """The strata's ancestors `drawn`, with slot 0 in stratum `cell`, rotated back."""
        return ((jnp.roll(drawn, -cell) - turn) % self.size).at[0].set(0)

    def _atoms(self):
        n, each = self.size, jnp.arange(self.size)

        def given(turn, cell):
            held = overlaps(quotas(jnp.roll(self.log_weights, turn)))
            vectors, probabilities = independent(held.at[cell].set(each == turn))
            return jax.vmap(lambda drawn: self._at(turn, cell, drawn))(vectors), portions(held[:, turn])[cell] * probabilities / n

        vectors, probabilities = jax.vmap(lambda turn: jax.vmap(lambda cell: given(turn, cell))(each))(each)
        return vectors.reshape(-1, n).astype(jnp.int32), probabilities.reshape(-1)


class ConditionalKilling(Ancestors):
    """`Killing`, given that slot 0 has a copy of particle 0: the slot from which it was rotated there is its own, or any that was left to it."""

    def _draw(self, key):
        own_key, cell_key, point_key, stay_key, draw_key = jax.random.split(key, 5)
        weights = relative(self.log_weights)
        ends = quotas(jnp.log1p(-weights)).ends
        cell, point = jax.random.randint(cell_key, (), 0, self.size), random_bits(point_key, weights, ())
        left = jnp.sum((ends.whole < cell) | ((ends.whole == cell) & (ends.part <= point)))
        slot = jnp.where(uniforms(own_key, weights, ()) * self.size < jnp.sum(weights), 0, left)
        stays = (uniforms(stay_key, weights, (self.size,)) < weights).at[slot].set(True)
        return self._from(slot, stays, ancestors([below_draws(draw_key, self.quotas.ends, jnp.sum(~stays), self.size)], self.size))

    def _from(self, slot: Int[Array, ""], stays: Bool[Array, " n"], drawn: Int[Array, " n"]) -> Int[Array, " n"]:
        """With particle 0 in that slot, and the others in theirs or redrawn, rotated."""
        return jnp.roll(Killing(self.log_weights)._at(stays, drawn), -slot).at[0].set(0)

    def _atoms(self):
        n, weights = self.size, relative(self.log_weights)
        others = jnp.array([(True, *stays) for stays in itertools.product([False, True], repeat=n - 1)])
        drawn, probabilities = independent(jnp.broadcast_to(portions(weights), (max(n - 1, 1), n)))

        def given(slot):
            stays = jnp.roll(others, slot, axis=1)
            chances = jnp.prod(jnp.where(stays, weights, 1 - weights).at[:, slot].set(1.0), axis=1)
            redrawn = jnp.arange(drawn.shape[1]) < jnp.sum(~stays, axis=1)[:, None]
            filled = jnp.sort(jnp.where(redrawn[:, None], drawn, n), axis=2)
            vectors = jax.vmap(lambda stays, drawn: jax.vmap(lambda drawn: self._from(slot, stays, drawn))(drawn))(stays, filled)
            share = (1 - weights[slot] + jnp.where(slot == 0, jnp.sum(weights), 0.0)) / n
            return vectors, share * chances[:, None] * probabilities

        vectors, probabilities = jax.vmap(given)(jnp.arange(n))
        return vectors.reshape(-1, n), probabilities.reshape(-1)


CONDITIONAL: dict[str, type[Ancestors]] = {
    "systematic": ConditionalSystematic,
    "stratified": ConditionalStratified,
    "multinomial": ConditionalMultinomial,
    "residual": ConditionalResidual,
    "ssp": ConditionalSSP,
    "killing": ConditionalKilling,
}


def keeping(others: Int[Array, " n"]) -> Int[Array, " n"]:
    """Particle 0 before the first n - 1 of the others."""
    return jnp.concatenate([jnp.zeros(1, others.dtype), others[:-1]])


def inside(key: PRNGKeyArray, whole: Int[Array, ""], part: UInt[Array, ""]) -> tuple[Int[Array, ""], UInt[Array, ""]]:
    """A uniform number below `whole + part / unit`, as whole and part."""
    cell_key, point_key = jax.random.split(key)
    cell = jnp.floor(uniforms(cell_key, part, ()) * (whole + real(part))).astype(jnp.int32)
    cell = jnp.clip(cell, 0, jnp.where(part > 0, whole, jnp.maximum(whole - 1, 0)))
    share: Float[Array, ""] = uniforms(point_key, part, ()) * part.astype(real(part).dtype)
    return cell, jnp.where(cell < whole, random_bits(point_key, part, ()), jnp.minimum(share.astype(part.dtype), jnp.maximum(part, 1) - 1))
