"""Conditional SSP resampling: the tournament of `Srinivasan`, given that particle 0 has a copy in slot 0."""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int, UInt

from posterity.inference.smc.resampling.quotas import real
from posterity.inference.smc.resampling.schemes import Ancestors, Srinivasan, portions, uniforms


class ConditionalSSP(Ancestors):
    """`Srinivasan`, with the particles rotated at random before, given that slot 0 has a copy of particle 0.

    Weighed by its copies, particle 0 goes up at other odds, and only the meetings on its way to the final hear of that: there the opponent
    is settled given what it met, and so whether their sum goes up in the next. All other meetings are as they were.
    """

    def _draw(self, key):
        turn_key, up_key, heads_key, way_key, cell_key = jax.random.split(key, 5)
        turn = jax.random.randint(turn_key, (), 0, self.size)
        tree = Srinivasan(jnp.roll(self.log_weights, turn))
        firsts, seconds = zip(*tree._rounds())
        levels = jnp.arange(len(firsts))
        met = jnp.cumsum(jnp.array([0, *(len(first) for first in firsts[:-1])])) + (turn >> (levels + 1))
        first, second, is_first = jnp.concatenate(firsts)[met], jnp.concatenate(seconds)[met], (turn >> levels) % 2 == 0
        own, other = jnp.where(is_first, first, second), jnp.where(is_first, second, first)
        whole, part = (x[turn] for x in tree.quotas)
        up = uniforms(up_key, part, ()) * (whole + real(part)) < (whole + 1) * real(part)
        _, ups = jax.lax.scan(meet, up, (own, other, uniforms(way_key, part, levels.shape)))
        drawn = tree._at(tree._heads(heads_key).at[met].set(ups == is_first))  # who wins matters only where one of the two goes up
        copies = jnp.sum(drawn == turn)
        cell = jnp.sum(drawn < turn) + jnp.floor(uniforms(cell_key, part, ()) * copies).astype(jnp.int32)
        return self._from(turn, drawn, cell)

    def _from(self, turn: Int[Array, ""], drawn: Int[Array, " n"], cell: Int[Array, ""]) -> Int[Array, " n"]:
        """Ancestors of the rotated particles, those in `cell` first, as ancestors of the particles."""
        return ((jnp.roll(drawn, -cell) - turn) % self.size).at[0].set(0)

    def _atoms(self):
        n, each = self.size, jnp.arange(self.size)
        never = (self.quotas.whole[0] == 0) & (self.quotas.part[0] == 0)

        def given(turn):
            vectors, probabilities = Srinivasan(jnp.roll(self.log_weights, turn))._atoms()
            held = (vectors == turn) | (never & (each == turn))
            return jax.vmap(lambda drawn: jax.vmap(lambda cell: self._from(turn, drawn, cell))(each))(vectors), held * probabilities[:, None]

        vectors, probabilities = jax.vmap(given)(each)
        return vectors.reshape(-1, n), portions(probabilities.reshape(-1))


def meet(up: Bool[Array, ""], meeting: tuple[UInt[Array, ""], UInt[Array, ""], Float[Array, ""]]) -> tuple[Bool[Array, ""], Bool[Array, ""]]:
    """Whether the sum goes up, in the tournament of `Srinivasan`, given that one of the two that meet does (or does not); `u` settles the other."""
    own, other, u = meeting
    over = own + other < own  # together more than one: both go up or one of them, else one of them or none
    rest = jnp.where(own > 0, real(-own), 1.0)
    other_up = jnp.where(up, over & (u * real(own) < real(own + other)), over | (u * rest < real(other)))
    return jnp.where(over, up & other_up, up | other_up), up
