"""Resampling schemes: distributions over ancestor vectors.

Each takes unnormalised log weights [n] and draws `ancestors` [n] int32, such that E[number of copies of i] = n W_i, in O(n).
They are NumPyro distributions of finite support, so that a checker can enumerate what an algorithm draws.
"""

import itertools

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array
from jaxtyping import Bool, Float, Int, PRNGKeyArray, UInt
from numpyro.distributions import constraints

from posterity.inference.smc.resampling.quotas import Quotas, columns, quotas, real, relative, running_sum, running_sums, word
from posterity.ppl.effects import Atomic


class Ancestors(dist.Distribution, Atomic):
    """Base of the schemes; `log_weights` [n] nats, with at least one finite entry."""

    arg_constraints = {"log_weights": constraints.real_vector}  # noqa: RUF012 - NumPyro's own declaration
    support = constraints.nonnegative_integer  # pyright: ignore[reportAssignmentType] - NumPyro's own way
    has_enumerate_support = True
    pytree_data_fields = ("log_weights",)

    def __init__(self, log_weights: Float[Array, " n"], *, validate_args: bool | None = None):
        self.log_weights = log_weights
        super().__init__(batch_shape=(), event_shape=log_weights.shape, validate_args=False if validate_args is None else validate_args)

    @property
    def size(self) -> int:
        return self.log_weights.shape[0]

    @property
    def quotas(self) -> Quotas:
        return quotas(self.log_weights)

    @property
    def log_left(self) -> Float[Array, " n"] | None:
        """What a copy of each particle weighs, as a share of 1/n: log(n W_i / E[number of copies of i]), nats; None where all weigh the same."""
        return None

    def _draw(self, key: PRNGKeyArray) -> Int[Array, " n"]:
        raise NotImplementedError(f"{type(self).__name__} cannot be drawn from: it does not define _draw")

    def _atoms(self) -> tuple[Int[Array, "outcomes n"], Float[Array, " outcomes"]]:
        """Ancestor vectors [outcomes, n], which may repeat, and their probabilities [outcomes]."""
        raise NotImplementedError(f"{type(self).__name__} cannot be enumerated: it does not define _atoms")

    def sample(self, key: PRNGKeyArray, sample_shape: tuple = ()) -> Int[Array, "*shape n"]:
        function = self._draw
        for _ in sample_shape:
            function = jax.vmap(function)
        return function(jax.random.split(key, sample_shape) if sample_shape else key)

    def atoms(self) -> tuple[Int[Array, "outcomes n"], Float[Array, " outcomes"]]:
        vectors, probabilities = self._atoms()
        return vectors, jnp.log(probabilities)

    def log_prob(self, value: Int[Array, " n"]) -> Float[Array, ""]:
        vectors, probabilities = self._atoms()
        return jnp.log(jnp.sum(jnp.where(jnp.all(vectors == value, axis=-1), probabilities, 0.0)))

    def enumerate_support(self, expand: bool = True) -> Int[Array, "outcomes n"]:
        """Every ancestor vector that can be drawn, [outcomes, n]; an outcome's probability is shared by its repetitions' `log_prob`."""
        return jnp.unique(self._atoms()[0], axis=0)


class Systematic(Ancestors):
    """Systematic resampling (Kitagawa 1996): one uniform; the number of copies of i differs from n W_i by less than one.

    The same as whole copies first (`Residual`) and the rest systematically.
    """

    def _draw(self, key):
        return self._at(random_bits(key, self.log_weights, ()))

    def _at(self, u: UInt[Array, ""]) -> Int[Array, " n"]:
        whole, part = map(columns, self.quotas)
        # A sum of parts that passes a whole number wraps around, and that is one more copy.
        copies = [w + (u + sums < p) for w, p, sums in zip(whole, part, running_sums(part), strict=True)]
        return ancestors(running_sums(copies), self.size)

    def _atoms(self):
        edges = jnp.sort(jnp.append(-self.quotas.ends.part, jnp.zeros((), word(self.log_weights))))  # where some sum begins to wrap
        return jax.vmap(self._at)(edges), jnp.diff(real(edges), append=1.0)


class Stratified(Ancestors):
    """Stratified resampling (Kitagawa 1996): one uniform in each of n strata of equal width."""

    def _draw(self, key):
        return ancestors([below_strata(self.quotas.ends, random_bits(key, self.log_weights, (self.size,)))], self.size)

    def _atoms(self):
        return independent(overlaps(self.quotas))


class Multinomial(Ancestors):
    """Multinomial resampling (Gordon, Salmond, Smith 1993): n independent draws from the weights, sorted."""

    def _draw(self, key):
        return ancestors([below_draws(key, self.quotas.ends, self.size, self.size)], self.size)

    def _atoms(self):
        vectors, probabilities = independent(jnp.broadcast_to(portions(relative(self.log_weights)), (self.size, self.size)))
        return jnp.sort(vectors, axis=1), probabilities


class Residual(Ancestors):
    """Residual resampling (Liu and Chen 1998): the whole number of copies below n W_i, and the rest by independent draws."""

    def _draw(self, key):
        whole, part = self.quotas
        ends = Quotas(jnp.zeros_like(whole), part).ends
        return ancestors([running_sum(whole) + below_draws(key, ends, ends.whole[-1], ends.whole[-1])], self.size)

    def _atoms(self):
        whole, part = self.quotas
        vectors, probabilities = independent(jnp.broadcast_to(portions(real(part)), (self.size, self.size)))
        drawn = jnp.arange(self.size) < self.size - jnp.sum(whole)
        return jax.vmap(lambda vector: repeated(whole.at[vector].add(drawn)))(vectors), probabilities


class Srinivasan(Ancestors):
    """SSP resampling (Srinivasan 2001; Gerber, Chopin and Whiteley 2019): as even as systematic, and copies are negatively associated.

    Each n W_i is rounded up or down. Two fractions meet and one of them is settled, at odds that keep both expectations; the
    other, now their sum modulo one, meets the next. Here they meet in a tournament, so all of a round are settled at once.
    """

    def _draw(self, key):
        return self._at(self._heads(key))

    def _heads(self, key: PRNGKeyArray) -> Bool[Array, " meetings"]:
        """Whether the first wins, in every meeting."""
        first, second = (jnp.concatenate(chances) for chances in zip(*(_chances(*meeting) for meeting in self._rounds())))
        # Compared as a product: divided, the chance of a small fraction against a large one would be rounded.
        return uniforms(key, self.log_weights, first.shape) * (first + second) < first

    def _rounds(self) -> list[tuple[UInt[Array, " m"], UInt[Array, " m"]]]:
        """The fractions that meet, round by round, the final last."""
        part, rounds = jnp.pad(self.quotas.part, (0, (1 << max(1, (self.size - 1).bit_length())) - self.size)), []
        while part.size > 1:
            rounds.append((part[::2], part[1::2]))
            part = part[::2] + part[1::2]
        return rounds

    def _at(self, heads: Bool[Array, " meetings"]) -> Int[Array, " n"]:
        up, rounds, last = jnp.zeros(1, bool), self._rounds(), heads.size
        for first, second in reversed(rounds):
            wins, last = heads[last - first.size : last], last - first.size
            over = first + second < first  # together more than one: one of them goes up for certain, else one of them goes down
            up = jnp.stack([jnp.where(over, up | wins, up & wins), jnp.where(over, up | ~wins, up & ~wins)], axis=1).reshape(-1)
        return repeated(self.quotas.whole + up[: self.size])

    def _atoms(self):
        first, second = (jnp.concatenate(chances) for chances in zip(*(_chances(*meeting) for meeting in self._rounds())))
        chance = jnp.where(first > 0, first / (first + second), 0.0)
        heads = jnp.array(list(itertools.product([False, True], repeat=first.size)))
        return jax.vmap(self._at)(heads), jnp.prod(jnp.where(heads, chance, 1 - chance), axis=1)


class Killing(Ancestors):
    """Killing (Del Moral 2004): i stays in its place with probability w_i / max w; those that do not are drawn anew from the weights."""

    def _draw(self, key):
        stay_key, draw_key = jax.random.split(key)
        weights = relative(self.log_weights)
        stays = uniforms(stay_key, self.log_weights, (self.size,)) < weights
        return self._at(stays, ancestors([below_draws(draw_key, self.quotas.ends, jnp.sum(~stays), self.size)], self.size))

    def _at(self, stays: Bool[Array, " n"], drawn: Int[Array, " n"]) -> Int[Array, " n"]:
        """`drawn`, as far as they go, in the places of those that do not stay."""
        return jnp.where(stays, jnp.arange(self.size, dtype=jnp.int32), drawn[running_sum((~stays).astype(jnp.int32)) - 1])

    def _atoms(self):
        n, weights = self.size, relative(self.log_weights)
        stays = jnp.array(list(itertools.product([False, True], repeat=n)))
        drawn, probabilities = independent(jnp.broadcast_to(portions(weights), (n, n)))

        def one(stays, drawn):
            return self._at(stays, jnp.sort(jnp.where(jnp.arange(n) < jnp.sum(~stays), drawn, n)))

        vectors = jax.vmap(lambda stays: jax.vmap(lambda drawn: one(stays, drawn))(drawn))(stays)
        chances = jnp.prod(jnp.where(stays, weights, 1 - weights), axis=1)
        return vectors.reshape(-1, n), (chances[:, None] * probabilities).reshape(-1)


def repeated(copies: Int[Array, " n"]) -> Int[Array, " n"]:
    """Each index as often as it is to be copied, in order."""
    return ancestors(running_sums(columns(copies)), copies.size)


def ancestors(ends: list[Int[Array, " m"]], n: int) -> Int[Array, " n"]:
    """Ancestors [n] from how many slots lie before each particle's end (in any order): the histogram of ends, summed. O(n), no search."""
    histogram = jnp.zeros(n, jnp.int32)
    for some in ends:
        histogram = histogram.at[some].add(1, mode="drop")
    return running_sum(histogram)


def below_strata(ends: Quotas, points: UInt[Array, " n"]) -> Int[Array, " n"]:
    """How many of the points `k + points[k]` lie below each end."""
    return ends.whole + (points[jnp.minimum(ends.whole, points.size - 1)] < ends.part)


def below_draws(key: PRNGKeyArray, ends: Quotas, draws: Int[Array, ""] | int, length: Int[Array, ""] | int) -> Int[Array, " n"]:
    """How many of so many points, uniform from 0 to `length` (neither more than n), lie below each end.

    Points fall into cells of length one; only those in the same cell as an end are compared with it, at most about ten of a million.
    """
    n = ends.whole.size
    cell_key, place_key = jax.random.split(key)
    cells = jax.random.randint(cell_key, (n,), 0, jnp.maximum(length, 1))
    loads = jnp.zeros(n, jnp.int32).at[cells].add(jnp.arange(n) < draws)
    places = random_bits(place_key, ends.part, (n,))  # of the points, cell by cell
    last = running_sum(loads)
    cell = jnp.minimum(ends.whole, n - 1)
    first, last = jnp.where(ends.whole < n, (last - loads)[cell], draws), last[cell]

    def compare(turn, below):
        point = first + turn
        return below + ((point < last) & (places[jnp.minimum(point, n - 1)] < ends.part))

    return jax.lax.fori_loop(0, jnp.max(loads), compare, first)


def overlaps(quotas: Quotas) -> Float[Array, "n n"]:
    """How much of each stratum [stratum, particle] belongs to each particle."""
    upper = quotas.ends.whole + real(quotas.ends.part)
    lower = jnp.concatenate([jnp.zeros(1), upper[:-1]])
    strata = jnp.arange(upper.size)[:, None]
    return jnp.clip(jnp.minimum(upper, strata + 1) - jnp.maximum(lower, strata), 0.0)


def portions(x: Float[Array, " n"]) -> Float[Array, " n"]:
    """Scaled to sum to one; equal if all are zero."""
    total = jnp.sum(x)
    return jnp.where(total > 0, x / jnp.where(total > 0, total, 1.0), 1 / x.size)


def independent(probabilities: Float[Array, "slots n"]) -> tuple[Int[Array, "outcomes slots"], Float[Array, " outcomes"]]:
    """All ancestor vectors whose entry j is drawn from row j, and their probabilities."""
    slots, n = probabilities.shape
    vectors = jnp.array(list(itertools.product(range(n), repeat=slots)), jnp.int32).reshape(-1, slots)
    return vectors, jnp.prod(probabilities[jnp.arange(slots), vectors], axis=1)


def random_bits(key: PRNGKeyArray, like: Array, shape: tuple[int, ...]) -> UInt[Array, "..."]:
    """Uniform fixed-point numbers, as wide as the weights."""
    return jax.random.bits(key, shape, word(like))


def uniforms(key: PRNGKeyArray, like: Array, shape: tuple[int, ...]) -> Float[Array, "..."]:
    """Floats in [0, 1) that get as close to zero as fixed point does: `jax.random.uniform` gives zero itself at one in 2^23."""
    x = real(random_bits(key, like, shape))
    return jnp.minimum(x, 1 - jnp.finfo(x.dtype).epsneg)


def _chances(first: UInt[Array, " m"], second: UInt[Array, " m"]) -> tuple[Float[Array, " m"], Float[Array, " m"]]:
    """At what odds the first wins: goes up where one does, or is not the one that goes down."""
    over = first + second < first
    return jnp.where(over, real(-second), real(first)), jnp.where(over, real(-first), real(second))
