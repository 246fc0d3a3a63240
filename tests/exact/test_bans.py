"""Banned strings and budgets of costs: constraints give exactly the model's law given that they are kept; going back and trying again does not."""

import itertools
import math

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import posterity as po
from posterity.models.lm.next_token import NextToken
from posterity.models.potentials import at_most, safe, without

LETTERS, A, B, END, LENGTH = "abc", 0, 1, 3, 3


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64():
        yield


def bigrams():
    return po.tabular.ngram(["abca", "cab", "bba"], order=2)


def masses(holds):
    """The model's mass of every text after a c, ended or cut off, that a predicate holds of: {answer: mass}, in plain Python."""
    automaton = bigrams().model().reader
    tables = [np.exp(np.asarray(automaton.log_probs, float)[automaton.following[0, before]]) for before in range(3)]
    found = {}
    for tokens in itertools.chain.from_iterable(itertools.product(range(3), repeat=n) for n in range(LENGTH + 1)):
        path = (2, *tokens)
        mass = math.prod(tables[before][token] for before, token in itertools.pairwise(path))
        text = "".join(LETTERS[i] for i in tokens)
        if holds(text):
            found[text] = mass * (tables[path[-1]][END] if len(tokens) < LENGTH else 1.0)
    return found


def shares(found):
    total = math.fsum(found.values())
    return {text: mass / total for text, mass in found.items()}


@po.program
def backtracking(lm, prompt):
    """Goes back to where a banned ab begins, refuses its a there, and draws again; no weights."""

    def step(carry, _):
        text, refused = carry
        place = text.generated
        token = po.sample("token", NextToken(jnp.where(refused[place], -jnp.inf, text.next().logits)))
        banned = (place > 0) & (text.last == A) & (token == B)
        begin = jnp.where(banned, place - 1, place)
        refused = refused & (jnp.arange(LENGTH) <= begin)[:, None]  # what was refused after another beginning is open again
        return text.push(token).rewind(jnp.where(banned, begin, place + 1)), refused.at[begin, A].set(refused[begin, A] | banned)

    def until(carry):
        return carry[0].ended | (carry[0].generated == LENGTH)

    refused = jnp.zeros((LENGTH, lm.tokenizer.vocab_size), bool)
    return po.scan(step, (lm.start(prompt), refused), length=12, until=until)[0]


def test_banned_strings_have_the_conditional_law_and_backtracking_has_another(laws):
    lm, expected = bigrams(), masses(lambda text: "ab" not in text)
    constrained = po.constrained(lm, "c", without("ab"), max_tokens=LENGTH)
    laws.holds("banned strings, conditional law", po.check.same_meaning(constrained, expected))
    wrong = po.check.same_meaning(backtracking(lm, lm.prompt("c")), shares(expected))
    laws.fails("banned strings by backtracking", wrong)
    found = {text: estimate.value for text, estimate in po.exact(backtracking(lm, lm.prompt("c"))).answers().items()}
    assert set(found) == set(expected)  # it writes the right texts
    assert sum(found.values()) == pytest.approx(1.0)


@flax.struct.dataclass
class Toll(po.potentials.Potential):
    """A token costs what a table says, and twice as much after itself."""

    table: jax.Array  # [vocab]
    seen: bool = flax.struct.field(pytree_node=False, default=True)

    def start(self):
        return jnp.full((), -1)

    def update(self, last, token):
        return jnp.asarray(token, int), -jnp.where(token == last, 2.0, 1.0) * self.table[token]

    def scores(self, last):
        return -jnp.where(jnp.arange(len(self.table)) == last, 2.0, 1.0) * self.table if self.seen else None


COSTS = (0.7, 0.4, 0.0, 0.0, 0.0)


def cost(text):
    return sum((2 if i and text[i - 1] == letter else 1) * COSTS[LETTERS.index(letter)] for i, letter in enumerate(text))


@pytest.mark.parametrize("seen", [True, False])
def test_the_law_within_a_safety_budget_is_the_models_given_that_it_is_kept(laws, seen):
    program = po.constrained(bigrams(), "c", safe(Toll(jnp.array(COSTS), seen), 1.25), max_tokens=LENGTH)
    laws.holds("safety budget", po.check.same_meaning(program, masses(lambda text: cost(text) <= 1.25)))


def test_unsafe_texts_have_no_mass_in_a_single_particle_either():
    program = po.constrained(bigrams(), "c", safe(Toll(jnp.array(COSTS)), 0.5), max_tokens=LENGTH, temperature=5.0)
    posterior = po.smc(jax.random.key(0), program, n=1)
    assert all(cost(text) <= 0.5 for text, estimate in posterior.answers().items() if estimate.value > 0)


def test_costs_of_strings_within_a_budget(laws):
    program = po.constrained(bigrams(), "c", at_most({"b": 1, "ab": 1, "ca": 2}, 2), max_tokens=LENGTH)

    def paid(text):
        return text.count("b") + text.count("ab") + 2 * text.count("ca")

    laws.holds("costs of strings within a budget", po.check.same_meaning(program, masses(lambda text: paid(text) <= 2)))
