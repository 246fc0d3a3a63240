"""Kernels on whole runs leave the posterior of finite programs and of texts invariant, runs that end early included; so does power sampling."""

import itertools
import math
from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from flax import struct
from jax import Array
from jax.tree_util import Partial

import posterity as po
from posterity.inference.mcmc import editor as editors
from posterity.inference.mcmc import exchanging, on_runs
from posterity.inference.mcmc.editor import editor
from posterity.inference.mcmc.on_runs import conditional_filter, gibbs, span, suffix
from posterity.inference.mcmc.runs import Kept, kept
from posterity.tests.fixtures import finite
from posterity.tests.fixtures.finite import arrays
from posterity.tests.fixtures.posed import UNTEMPERED, UNTIMED, planted, posed
from posterity.tests.fixtures.tiny_lm import language_model

STOPPING = ([0.3, 0.7], [[0.5, 0.5], [0.2, 0.8]], [[1.0, 1.0], [0.5, 0.25], [0.3, 1.5]], [1.0, 3.0, 0.25])
THREE = (  # it goes on from 0 and from 2
    [0.25, 0.5, 0.25],
    [[0.5, 0.25, 0.25], [0.25, 0.25, 0.5], [0.2, 0.5, 0.3]],
    [[1.0, 1.0, 0.5], [0.5, 0.25, 2.0], [0.3, 1.5, 1.0]],
    [1.0, 3.0, 0.25],
)
EXPONENT = 3.0


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64():
        yield


def stopping(tables=STOPPING):
    return finite.stopping(*arrays(*tables))


def emitting():
    return finite.emitting(*arrays([0.4, 0.6], [[0.7, 0.3], [0.1, 0.9]], [[0.5, 0.5], [0.2, 0.8]]), jnp.array([1, 0]))


@po.program
def words(lm, prompt, length):
    """Texts that end early, in which every b counts double."""

    def step(text, _):
        token = po.sample("token", text.next())
        po.factor("b", jnp.where(token == 1, jnp.log(2.0), 0.0))
        return text.push(token)

    return po.scan(step, lm.start(prompt), length=length)


def bigrams():
    lm = po.tabular.ngram(["ab", "aab", "b", "abba"], order=2)
    return words(lm, lm.prompt("a"), 2)


@cache
def moves(kernel):
    return planted(kernel)


def checked(kernel, program, *, exponent=1.0, **options):
    return po.check.invariant(moves(kernel), posed(kept(program, scored=True), exponent=exponent, **options))


@po.program
def rewriting(path, rates):
    """Writes one step of a path anew, and leaves the other as it is; which one depends on how long the path is."""
    which = po.sample("which", dist.Categorical(jnp.where(path[2] < 0, jnp.array([0.9, 0.1]), jnp.array([0.3, 0.7]))))

    def step(carry, _):
        t, last = carry
        old = path[t + 1]
        law = jnp.where((t == which) | (old < 0), jnp.asarray(rates)[last], jax.nn.one_hot(old, 2))
        return t + 1, po.sample("x", dist.Categorical(law))

    return po.scan(step, (0, path[0]), length=2, until=lambda carry: carry[1] == 1)


def rewrite(rates, path):
    return rewriting(path, rates)


EDITOR = editor(Partial(rewrite, np.array([[0.6, 0.4], [0.25, 0.75]])))


def no_length(wrong, log_positions):
    return lambda runs: jnp.where(wrong, 0.0, log_positions(runs))


def no_rest(wrong, priors):
    return lambda runs, since=1: jnp.where(wrong, 0.0, priors(runs, since))


def no_way_back(wrong, density):
    return lambda *given: jnp.where(wrong, 0.0, density(*given))


def nothing_followed(wrong, step):
    def mutant(self, key, runs, *, where=None, given=None, which=None):
        return step(self, key, runs, where=where, given=given, which=None if which is None else which & ~wrong)

    return mutant


def any_length(wrong, as_long):
    return lambda *given: wrong | as_long(*given)


LENGTH, REST = (on_runs, "log_positions", no_length), (on_runs, "priors", no_rest)
KERNELS = {
    "suffix": (suffix(), STOPPING, LENGTH, "without n / n'"),
    "gibbs": (gibbs("x"), THREE, REST, "without the density of the rest"),
    "editor": (EDITOR, STOPPING, (editors.Editor, "_density", no_way_back), "without q(x | x')"),
}
SLOW = {
    "span": (span(), THREE, REST, "without the density of the rest"),
    "gibbs, blocks of 2": (gibbs("x", size=2), STOPPING, (on_runs, "as_long", any_length), "that takes shorter ones"),
    "suffix, 2 tries": (suffix(tries=2), STOPPING, LENGTH, "without n / n'"),
    "span of 2, 2 tries": (span(2, tries=2), STOPPING, (on_runs, "as_long", any_length), "that takes shorter ones"),
    "conditional filter": (conditional_filter(2), STOPPING, (Kept, "step", nothing_followed), "that follows nothing"),
}


@pytest.mark.parametrize("name", [*KERNELS, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_kernels_on_runs_leave_their_law_invariant_after_some_steps_and_at_powers_too(laws, name):
    kernel, tables, fault, mistaken = (KERNELS | SLOW)[name]
    kernel = planted(kernel, fault)

    def check(**options):
        return po.check.invariant(kernel, posed(kept(stopping(tables), scored=True), **{"exponent": 1.0, **options}))

    laws.holds(f"{name}, on runs", check())
    laws.holds(f"{name}, on runs, after 1 of 2 steps, at exponent 0.5", check(time=1, exponent=0.5))
    laws.fails(f"{name}, on runs, {mistaken}", check(fault=1))
    laws.fails(f"{name}, on runs, that is not told the time", check(time=1, fault=UNTIMED))
    laws.fails(f"{name}, on runs, that is not told the exponent", check(exponent=0.5, fault=UNTEMPERED))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kernel"), [("suffix", suffix()), ("gibbs", gibbs("z"))])
def test_data_may_drive_the_runs(laws, name, kernel):
    laws.holds(f"{name}, on runs driven by data", checked(kernel, emitting()))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kernel"), [("suffix", suffix()), ("span", span()), ("gibbs", gibbs("token")), ("gibbs of 2", gibbs("token", size=2))])
def test_token_kernels_leave_the_law_of_texts_invariant(laws, name, kernel):
    laws.holds(f"{name}, texts of a tabular lm", checked(kernel, bigrams()))
    laws.holds(f"{name}, texts of a tabular lm, after 1 of 2 tokens, at exponent 0.5", checked(kernel, bigrams(), time=1, exponent=0.5))


@struct.dataclass
class Together:
    """Copies of a program's texts as one particle, weighed by all their potentials, each to its power."""

    inner: Kept
    fault: Array

    @property
    def length(self):
        return self.inner.length

    def init(self, key, n):
        runs, log_potential = self.inner.init(key, self.inner.exponent.shape[0])
        return runs, jnp.sum(self.inner.tempered(log_potential))[None]

    def step(self, key, particles, *, where=None):
        runs, log_potential = self.inner.step(key, particles)
        return runs, jnp.sum(self.inner.tempered(log_potential))[None]

    def select(self, particles, ancestors):
        return particles

    def done(self, particles):
        return jnp.all(self.inner.done(particles))[None]

    def value(self, particles):
        return self.inner.value(particles).tokens[None]


@pytest.mark.slow
def test_copies_of_texts_that_exchange_leave_the_product_of_their_laws_invariant(laws):
    lm, exponents = po.tabular.ngram(["ab", "aab", "b", "abba"], order=2), jnp.array([1.0, 0.25])
    kernel, original = po.kernels.parallel_tempering(suffix(), exponents=exponents), exchanging.exchanged

    def move(key, target, runs):
        def exchanged(key, scores, exponents):
            return jnp.where(target.fault == 1, jnp.arange(2)[::-1], original(key, scores, exponents))

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(exchanging, "exchanged", exchanged)
            program = replace(target.inner, exponent=jnp.where(target.fault == 2, 1.0, target.inner.exponent))
            return kernel(key, program, runs)[0]

    def check(fault):
        return po.check.invariant(move, Together(kept(words(lm, lm.prompt("a"), 1), exponent=exponents), jnp.asarray(fault)))

    laws.holds("parallel_tempering, texts of a tabular lm", check(0))
    laws.fails("parallel tempering of texts that always exchanges", check(1))
    laws.fails("parallel tempering of texts whose moves are for exponent 1", check(2))


def two_particles(key, program):
    return po.smc(key, program, n=2, threshold=1.0)


@pytest.mark.slow
def test_tempering_texts_keeps_their_law(laws):
    """And at an exponent of 1/2 it has that of the roots of the potentials."""
    program = bigrams()
    laws.holds("temper, texts of a tabular lm", po.check.properly_weighted(two_particles, po.temper(program, jnp.array([0.25, 1.0])), meaning=program))
    halfway = po.temper(program, jnp.array([0.25, 0.5]))
    laws.holds("temper to exponent 0.5, texts of a tabular lm", po.check.properly_weighted(two_particles, halfway, meaning=posed(kept(program), exponent=0.5)))
    laws.fails("tempering taken for the law at its end", po.check.properly_weighted(two_particles, halfway, meaning=program))


@pytest.mark.slow
def test_the_cache_follows_texts_that_are_rewound(laws):
    lm = language_model()
    laws.holds("suffix, text of a decoder with its cache", checked(suffix(), words(lm, lm.prompt("ab"), 2)))


def powered(program):
    return po.adapt(po.power(program, EXPONENT, "token"), "token")


@pytest.mark.slow
def test_power_sampling_leaves_the_power_of_texts_invariant(laws):
    laws.holds("suffix, p^3 of a tabular lm's texts", checked(suffix(), powered(bigrams())))


def test_a_power_is_that_of_whole_texts_and_no_temperature():
    start, following = np.array([0.5, 0.3, 0.2]), np.array([[0.98, 0.01, 0.01], [0.4, 0.3, 0.3], [0.34, 0.33, 0.33]])

    @po.program
    def pairs(start, following):
        first = po.sample("first", dist.Categorical(start))
        return jnp.stack([first, po.sample("second", dist.Categorical(following[first]))])

    program = pairs(jnp.array(start), jnp.array(following))
    sharp = lambda p: p**EXPONENT / (p**EXPONENT).sum()  # noqa: E731
    texts = list(itertools.product(range(3), repeat=2))
    power = sharp(np.array([start[a] * following[a, b] for a, b in texts]))
    temperature = np.array([sharp(start)[a] * sharp(following[a])[b] for a, b in texts])
    powers = po.power(program, EXPONENT, "first", "second")
    found = po.exact(powers)
    np.testing.assert_allclose([found.answers()[text].value for text in texts], power, atol=1e-12)
    assert found.log_evidence == pytest.approx(math.log(sum((start[a] * following[a, b]) ** EXPONENT for a, b in texts)))
    assert 0.5 * np.abs(power - temperature).sum() > 0.1
    assert po.check.same_meaning(po.adapt(powers, "first", "second"), powers)


# -- mutants -------------------------------------------------------------------------------------------------------------------


def fresh(kernel):
    """A function of its own, which enumeration has not traced yet."""
    return lambda key, program, runs: kernel(key, program, runs)[0]


@pytest.mark.slow
def test_power_sampling_that_compares_as_far_as_the_proposal_goes_is_refuted(laws, monkeypatch):
    """As published: a proposal is no longer than the present text, and the ratio leaves out what the present text has beyond the proposal."""
    on, choose = on_runs.on, on_runs.choose

    def no_longer(key, program, runs, until, where, given=None):
        return on(key, program, runs, on_runs.of_chain(runs, runs.steps), where, given)

    def as_far(key, program, runs, log_weights, tries):
        own = jnp.arange(runs.log_potentials.shape[1]) <= on_runs.of_chain(runs, runs.steps[runs.chains :])[:, None]
        counted = own & (jnp.arange(runs.log_potentials.shape[1]) <= runs.steps[:, None])
        return choose(key, program, runs, jnp.sum(jnp.where(counted, runs.log_potentials, 0.0), axis=1), tries)

    monkeypatch.setattr(on_runs, "on", no_longer)
    monkeypatch.setattr(on_runs, "choose", as_far)
    laws.fails("power sampling as published, of texts that end early", po.check.invariant(fresh(suffix()), kept(powered(bigrams()))))
