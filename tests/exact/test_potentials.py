"""Texts weighed by a potential have the law that a plain sum gives, however their tokens are found."""

import itertools
import math

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import posterity as po
from posterity.models.lm.tabular import ngram
from posterity.models.potentials.texts import contains, in_order, length, of_characters, without
from posterity.models.potentials.tokens import over
from posterity.ppl.region import Rewriting, rewritten

LENGTH = 4


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64():
        yield


def bigrams():
    return ngram(["abca", "cab", "bba"], order=2)


CONSTRAINTS = {
    "contains": (contains("ca"), lambda text: "ca" in text),
    "without": (without("ab", "bb"), lambda text: "ab" not in text and "bb" not in text),
    "in order": (in_order("a", "bc"), lambda text: "bc" in text.partition("a")[2]),
    "characters": (of_characters("ab"), lambda text: set(text) <= set("ab")),
    "length": (length("characters", 2, 3), lambda text: 2 <= len(text) <= 3),
    "and": (contains("b") & ~contains("cc"), lambda text: "b" in text and "cc" not in text),
    "or": (contains("aa") | contains("cc"), lambda text: "aa" in text or "cc" in text),
}


def masses(weight, most=LENGTH):
    """The model's mass of every text after an a, ended or cut off at `most` letters, times its weight: {answer: mass}, in plain Python."""
    automaton = bigrams().model().reader
    tables = [np.exp(np.asarray(automaton.log_probs, float)[automaton.following[0, before]]) for before in range(3)]
    found: dict[str, float] = {}
    for letters in itertools.chain.from_iterable(itertools.product(range(3), repeat=n) for n in range(most + 1)):
        mass = math.prod(tables[before][token] for before, token in itertools.pairwise((0, *letters)))
        if len(letters) < most:
            mass *= tables[(0, *letters)[-1]][3]
        text = "".join("abc"[i] for i in letters)
        if mass * weight(text) > 0:
            found[text] = mass * weight(text)
    return found


def weighed(potential, **options):
    return po.constrained(bigrams(), "a", potential, max_tokens=LENGTH, **options)


def lifted(automaton):
    return over(automaton, bigrams().tokenizer)


@flax.struct.dataclass
class Rewards(po.potentials.Potential):
    """A weight for each pair of letters in a row; by `seen`, told in scores or not."""

    table: jax.Array  # [vocab, vocab] nats
    psi: jax.Array | None  # [vocab] nats
    seen: bool = flax.struct.field(pytree_node=False)

    def start(self):
        return jnp.zeros((), jnp.int32)

    def update(self, last, token):
        return jnp.asarray(token, jnp.int32), self.table[last, token]

    def scores(self, last):
        return self.table[last] if self.seen else None

    def to_go(self, last):
        return None if self.psi is None else self.psi[last]


TABLE = np.random.default_rng(0).normal(size=(5, 5))
TABLE[1, 2] = -np.inf  # no c after a b


def rewards(seen=True, psi=False):
    return Rewards(jnp.asarray(TABLE), jnp.array([0.3, -1.0, 0.5, 0.2, 0.1]) if psi else None, seen)


def reward(text, most=LENGTH):
    tokens = [0, *("abc".index(letter) for letter in text)] + ([3] if len(text) < most else [])
    return math.exp(sum(TABLE[pair] for pair in itertools.pairwise(tokens)))


@pytest.mark.parametrize("name", [name if name in ("contains", "without") else pytest.param(name, marks=pytest.mark.slow) for name in CONSTRAINTS])
def test_the_posterior_of_a_constraint_is_a_plain_sum(laws, name):
    automaton, holds = CONSTRAINTS[name]
    laws.holds("constrained, automaton of texts", po.check.same_meaning(weighed(automaton), masses(holds)))


@pytest.mark.parametrize("law", [None, "uniform", [0.3, 0.1, 0.2, 0.4, 0.0]])
def test_what_is_still_to_go_does_not_change_what_is_asked(laws, law):
    automaton, holds = CONSTRAINTS["contains"]
    laws.holds("within a budget, potential-to-go", po.check.same_meaning(weighed(lifted(automaton).within(LENGTH, law)), masses(holds)))


def test_a_budget_below_the_length_limit_is_part_of_the_constraint(laws):
    program = weighed(lifted(contains("a")).within(2, "uniform"))
    expected = masses(lambda text: "a" in text and len(text) <= 2)
    laws.holds("within a smaller budget", po.check.same_meaning(program, expected))


@pytest.mark.parametrize("psi", [False, True])
@pytest.mark.parametrize("seen", [False, True])
def test_potentials_of_ones_own_mean_the_same_with_and_without_scores(laws, seen, psi):
    laws.holds("constrained, a potential of one's own", po.check.same_meaning(weighed(rewards(seen, psi)), masses(reward)))


@pytest.mark.parametrize("seen", [False, True])
def test_products_and_powers_weigh_by_products_and_powers(laws, seen):
    automaton, holds = CONSTRAINTS["without"]
    potential = rewards(seen, psi=True) ** 0.5 * lifted(automaton).within(LENGTH, "uniform")
    laws.holds("product and power", po.check.same_meaning(weighed(potential), masses(lambda text: reward(text) ** 0.5 * holds(text))))


def test_a_changed_law_is_what_is_weighed(laws):
    automaton, _ = CONSTRAINTS["contains"]
    plain = weighed(lifted(automaton), temperature=2.0, top_k=3)
    laws.holds("constrained, changed law", po.check.same_meaning(weighed(automaton, temperature=2.0, top_k=3), plain))


class Forget(Rewriting):
    """Drops the weights of a constraint whose tokens were drawn by its mask."""

    def potential(self, msg):
        msg["stop"] = msg["name"] == "potential"


def test_smc_over_a_constraint_is_properly_weighted(laws):
    program = po.constrained(bigrams(), "a", contains("ca"), max_tokens=3)
    laws.holds("smc, constrained", po.check.properly_weighted(lambda key, program: po.smc(key, program, n=2, threshold=1.0), program))


def test_a_mask_without_its_weight_is_another_law(laws):
    automaton, _ = CONSTRAINTS["contains"]
    program = weighed(automaton)
    laws.fails("a mask without its weight", po.check.same_meaning(rewritten(Forget, program, ()), program))
