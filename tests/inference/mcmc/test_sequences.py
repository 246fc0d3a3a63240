"""Chains on runs and texts: what is kept is not computed again, the cache follows, many chains move at once, nothing compiles twice."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
import scipy.stats
from flax import struct

import posterity as po
from posterity.inference.mcmc import editor as editors
from posterity.inference.mcmc.editor import editor
from posterity.inference.mcmc.kernels import cycle
from posterity.inference.mcmc.on_runs import conditional_filter, gibbs, span, suffix
from posterity.inference.mcmc.runs import kept
from posterity.inference.mcmc.sequences import roomy
from posterity.inference.mcmc.tries import are_tried, back, of_chain, on, place, spread
from posterity.models.lm.heads import token_scores
from posterity.models.lm.language_model import LanguageModel
from posterity.tests.fixtures.tiny_lm import language_model

LENGTH = 5


@po.program
def words(lm, prompt, length):
    """Texts in which every b counts double."""

    def step(text, _):
        token = po.sample("token", text.next())
        po.factor("b", jnp.where(token == 1, jnp.log(2.0), 0.0))
        return text.push(token)

    return po.scan(step, lm.start(prompt), length=length)


def bigrams():
    return po.tabular.ngram(["ab", "abab", "bba"], order=2)


def program(lm, prompt="ab"):
    return words(lm, lm.prompt(prompt), LENGTH)


@struct.dataclass
class Counting:
    """A model that counts the tokens that go through it."""

    lm: LanguageModel

    @property
    def vocab_size(self):
        return self.lm.tokenizer.vocab_size

    @property
    def context_length(self):
        return self.lm.context_length

    def start(self, tokens, length, n, steps):
        law, memory = self.lm.model().start(tokens, length, n, steps)
        return law, Counted(memory, jnp.zeros((), jnp.int32))

    def advance(self, memory, tokens, active):
        law, inner = self.lm.model().advance(memory.inner, tokens, active)
        return law, Counted(inner, memory.read + jnp.sum(active, dtype=jnp.int32))


@struct.dataclass
class Counted:
    inner: object
    read: object  # tokens, of all texts together

    def select(self, ancestors):
        return replace(self, inner=self.inner.select(ancestors))

    def rewind(self, lengths):
        return replace(self, inner=self.inner.rewind(lengths))

    def bytes(self):
        return self.inner.bytes()


def read(runs):
    return int(runs.now.carry[0].memory.read)


@functools.partial(jax.jit, static_argnames="chains")
def begun(target, kernel, chains):
    """Chains at their first states, with room for what the kernel tries."""
    runs, _ = target.init(jax.random.key(1), chains)
    return roomy(target, kernel, on(jax.random.key(2), target, runs, LENGTH, jnp.ones(chains, bool)))


def test_the_kept_prefix_is_not_read_again():
    lm = bigrams()
    target = kept(program(LanguageModel.of(Counting(lm), lm.tokenizer, "counting")))
    chains = 32
    runs = begun(target, suffix(), chains)
    first = read(runs)
    assert first == int(runs.steps[:chains].sum())

    @jax.jit
    def tried(runs):
        position = place(jax.random.key(3), runs, least=0)
        runs = back(jax.random.key(4), target, runs, position, 1, begun=True)
        return position, on(jax.random.key(5), target, runs, LENGTH, are_tried(runs, 1))

    position, runs = tried(runs)
    kept_tokens = np.maximum(np.asarray(position)[chains:] - 1, 0)
    written = int((np.asarray(runs.steps)[chains:] - kept_tokens).sum())
    assert kept_tokens.sum() > 8
    assert read(runs) - first == written + (kept_tokens > 0).sum()  # the last token that stays is taken in again, for the law after it


def forced(target, runs, chains):
    """The log densities of the chains' choices, read from their beginnings."""
    again, _ = target.init(jax.random.key(6), chains)
    choices = jax.tree.map(lambda x: x[:chains], runs.choices)
    return on(jax.random.key(7), target, again, runs.steps[:chains], jnp.ones(chains, bool), choices)


@pytest.mark.slow
@pytest.mark.parametrize("kernel", [cycle(suffix(tries=2), span(2), gibbs("token")), conditional_filter(3)], ids=["cycle", "conditional filter"])
def test_the_cache_is_that_of_the_texts_after_many_moves(kernel):
    target, chains = kept(program(language_model()), scored=True), 4
    runs = begun(target, kernel, chains)

    @jax.jit
    def moved(runs):
        return jax.lax.fori_loop(0, 12, lambda k, runs: kernel(jax.random.fold_in(jax.random.key(8), k), target, runs)[0], runs)

    runs = moved(runs)
    again = jax.jit(lambda runs: forced(target, runs, chains))(runs)
    made = np.arange(LENGTH) < np.asarray(runs.steps)[:chains, None]
    np.testing.assert_allclose(np.where(made, runs.log_priors[:chains], 0.0), np.where(made, again.log_priors, 0.0), atol=1e-3)
    np.testing.assert_array_equal(target.value(runs).tokens, target.value(again).tokens)
    assert int(runs.now.carry[0].memory.pages.lacking) == 0


@po.program
def answers(lm, prompt, temperature):
    """Two tokens; a 7 counts double."""

    def step(text, _):
        token = po.sample("token", text.next(temperature=temperature))
        po.factor("7", jnp.where(lm.tokens_containing("7")[token], jnp.log(2.0), 0.0))
        return text.push(token)

    return po.scan(step, lm.start(prompt), length=2)


@po.program
def corrected(lm, prompt, old):
    """An answer to another question, in the place of an answer or of all of it but the first token."""
    place = po.sample("place", dist.Categorical(jnp.array([0.5, 0.5])))

    def step(carry, _):
        text, t = carry
        as_it_was = jax.nn.one_hot(old.tokens[old.prompt_length + t], lm.tokenizer.vocab_size)
        token = po.sample("token", dist.Categorical(jnp.where(t >= place, jax.nn.softmax(0.4 * text.next().logits), as_it_was)))
        return text.push(token), t + 1

    return po.scan(step, (lm.start(prompt), 0), length=2, until=lambda carry: carry[0].ended)


def laws_of_answers(lm, prompt, temperature):
    """The log probabilities of the first token and of the second one after each, [vocab] and [vocab, vocab], of texts read as a whole and without a cache."""
    vocab, start = lm.tokenizer.vocab_size, np.asarray(lm.prompt(prompt).tokens)[: lm.prompt(prompt).length]
    texts = jnp.concatenate([jnp.tile(start, (vocab, 1)), jnp.arange(vocab)[:, None]], axis=1)
    logits = np.asarray(token_scores(lm.decoder, texts), float)[:, -2:] / temperature
    log_laws = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
    ends = np.isin(np.arange(vocab), lm.tokenizer.end_ids)
    nothing = np.where(np.arange(vocab) == 0, 0.0, -np.inf)  # what stands after the end of a text
    return log_laws[0, 0], np.where(ends[:, None], nothing, log_laws[:, 1])


@pytest.mark.slow
def test_a_decoder_edits_texts_of_another_and_their_law_stays():
    """The ends of 512 chains are independent draws: by a chi-squared test, which is wrong one time in a thousand. Without the way back it refuses."""
    lm, prompt, chains = po.load("abacus"), "58*97-29=\n5626-29\n", 512
    target = kept(answers(lm, lm.prompt(prompt), 4.0), scored=True)
    edited = editor(jax.tree_util.Partial(corrected, lm, lm.prompt("61*83+94=\n5063+94\n")))
    density = editors.Editor._density

    @jax.jit
    def moved(runs, wrong):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(editors.Editor, "_density", lambda *given: jnp.where(wrong, 0.0, density(*given)))
            return jax.lax.fori_loop(0, 5, lambda k, runs: edited(jax.random.fold_in(jax.random.key(8), k), target, runs)[0], runs)

    first, second = laws_of_answers(lm, prompt, 4.0)
    sevens = np.where(np.asarray(lm.tokens_containing("7")), np.log(2.0), 0.0)
    mass = np.exp(first[:, None] + second + sevens[:, None] + np.where(second == 0, 0.0, sevens))
    expected = chains * mass / mass.sum()

    def p_value(runs):
        a, b, whole = *np.asarray(runs.choices["token"])[:chains].T, np.asarray(runs.steps)[:chains] == 2
        found = np.zeros_like(mass)
        np.add.at(found, (a, np.where(whole, b, 0)), 1)
        rare = expected < 5
        cells = [np.append(x[~rare], x[rare].sum()) for x in (found, expected)]
        assert len(cells[0]) > 10
        return scipy.stats.chisquare(*cells).pvalue

    start = begun(target, edited, chains)
    runs = moved(start, False)
    assert p_value(runs) > 1e-3
    a, b = np.asarray(runs.choices["token"])[:chains].T
    read = np.where(np.arange(2) < np.asarray(runs.steps)[:chains, None], np.stack([first[a], second[a, b]], axis=1), 0.0)
    np.testing.assert_allclose(np.where(read < 0, runs.log_priors[:chains], 0.0), read, atol=1e-3)  # the cache is that of the texts
    assert int(runs.now.carry[0].memory.pages.lacking) == 0
    assert p_value(moved(start, True)) < 1e-6


@pytest.mark.slow
def test_particle_independent_chains_move_over_texts_in_one_batch():
    """1,600 draws of 8 chains; the bound of 0.1 is more than four standard errors of a probability if every eighth of them were independent."""
    target = words(lm := bigrams(), lm.prompt("a"), 3)
    found = po.pimh(jax.random.key(0), target, n=4, draws=200, chains=8)
    exact = po.exact(target)
    long = lambda text: text.generated == 3  # noqa: E731
    assert (len(found), found.chains, found.by_chain(long).shape) == (1600, 8, (8, 200))
    assert abs(float(found.prob(long)) - exact.prob(long)) < 0.1


traced = []


@po.program
def rare(length, probability):
    """All heads, or nothing."""

    def step(heads, _):
        traced.append(None)
        head = po.sample("head", dist.Bernoulli(probability))
        po.factor("heads only", jnp.where(head == 1, 0.0, -jnp.inf))
        return heads + head

    return po.scan(step, 0, length=length)


@pytest.mark.slow
def test_chains_that_start_from_smc_start_where_something_is_allowed():
    found = po.mcmc_sequences(jax.random.key(0), rare(6, 0.3), chains=64, draws=1, start="smc")
    assert found.expect() == 6
    assert bool(jnp.all(jnp.isfinite(found.log_weights)))
    with pytest.raises(ValueError, match="found no state that the potentials allow"):
        po.mcmc_sequences(jax.random.key(0), rare(12, 0.3), chains=1, draws=1).expect()


def test_draws_of_a_chain_lie_together_and_another_key_or_other_data_compile_nothing_anew():
    found = po.mcmc_sequences(jax.random.key(0), rare(3, 0.9), chains=3, draws=5, warmup=2, thinning=2)
    assert (len(found), found.chains, found.by_chain().shape) == (15, 3, (3, 5))
    assert jnp.isnan(found.log_evidence)
    before = len(traced)
    po.mcmc_sequences(jax.random.key(1), rare(3, 0.4), suffix(), chains=3, draws=5, warmup=2, thinning=2)
    assert len(traced) == before > 0


def test_annealing_tells_the_best_run_and_that_it_is_no_posterior():
    @po.program
    def climb():
        def step(x, _):
            x = x + po.sample("up", dist.Bernoulli(0.5))
            po.factor("height", 1.0 * x)
            return x

        return po.scan(step, 0, length=5)

    found = po.anneal(jax.random.key(0), climb(), exponents=jnp.linspace(0.1, 3.0, 60), chains=2)
    assert (int(found.expect()), float(jnp.max(found.scores)), found.accepted.shape) == (5, 15.0, (60, 2))
    assert "no posterior" in repr(found)
    assert jnp.isnan(found.log_evidence)


@po.program
def alike():
    """Flips that want to be all alike: two modes."""

    def step(carry, _):
        heads, t = carry
        return heads + po.sample("head", dist.Bernoulli(0.5)), t + 1

    heads, t = po.scan(step, (0, 0), length=6)
    po.factor("alike", 6.0 * jnp.abs(heads - t / 2))
    return heads


@pytest.mark.slow
def test_copies_of_runs_cross_between_modes():
    """Between the two lie 18 nats, which changes of one flip alone do not cross. Five of the chain's own standard errors: false once in two million."""
    kernel = po.kernels.parallel_tempering(span(), exponents=(1.0, 0.5, 0.25, 0.1, 0.03))
    options = {"chains": 4, "draws": 2_000, "warmup": 50}
    found = po.mcmc(jax.random.key(0), alike(), kernel=kernel, **options)
    assert (len(found), found.chains, found.accepted.shape) == (8_000, 4, (8_000,))
    value, error = found.estimate(lambda heads: heads * 1.0)
    assert error < 0.3
    assert abs(value - po.exact(alike()).expect()) < 5 * error
    stuck = po.mcmc(jax.random.key(0), alike(), kernel="span", **options).by_chain()
    assert jnp.all((stuck > 3) == (stuck[:, :1] > 3))
    grown = po.power_sampling(jax.random.key(0), alike(), "head", exponent=1.0, kernel=kernel, block=3, moves=2, chains=2, draws=3)
    assert (len(grown), grown.chains) == (6, 2)


def test_what_cannot_be_moved_is_refused():
    chunked = po.chunk(rare(4, 0.3), lambda heads: heads % 2 == 0)
    with pytest.raises(TypeError, match="made of a function"):
        po.mcmc_sequences(jax.random.key(0), chunked, gibbs("head"), draws=1)
    with pytest.raises(ValueError, match="makes a choice called 'tail'; they make 'head'"):
        po.mcmc_sequences(jax.random.key(0), rare(4, 0.3), gibbs("tail"), draws=1)
    with pytest.raises(ValueError, match="start must be one of prior, smc"):
        po.mcmc_sequences(jax.random.key(0), rare(4, 0.3), draws=1, start="anywhere")
    with pytest.raises(ValueError, match="exponents must be a vector"):
        po.anneal(jax.random.key(0), rare(4, 0.3), exponents=jnp.array([-1.0]))
    with pytest.raises(ValueError, match="n must be at least 2"):
        conditional_filter(1)
    with pytest.raises(ValueError, match="gibbs: size must be a whole number, 1 or more, got 0"):
        gibbs("head", size=0)
    exchanging = po.kernels.parallel_tempering(suffix(), exponents=(1.0, 0.5))
    with pytest.raises(ValueError, match="it goes around other kernels"):
        po.mcmc(jax.random.key(0), rare(4, 0.3), kernel=cycle(exchanging, suffix()), chains=2, draws=1)
    with pytest.raises(ValueError, match="nor into an annealed one"):
        po.anneal(jax.random.key(0), rare(4, 0.3), exchanging, exponents=jnp.ones(3))


@pytest.mark.slow
def test_texts_that_their_program_writes_over_stop_the_chain():
    @po.program
    def hesitating(lm, prompt):
        def step(carry, _):
            text, t = carry
            text = text.push(po.sample("token", text.next()))
            return text.rewind(jnp.where(t == 2, 0, text.generated)), t + 1

        return po.scan(step, (lm.start(prompt), 0), length=5, until=lambda carry: carry[1] == 5)[0]

    lm = bigrams()
    with pytest.raises(ValueError, match="NaN"):
        po.mcmc_sequences(jax.random.key(0), hesitating(lm, lm.prompt("ab")), chains=4, draws=8)


@pytest.mark.slow
def test_rows_that_a_kernel_does_not_try_stay_as_they_are():
    target = kept(rare(3, 0.3), scored=True)
    runs, _ = target.init(jax.random.key(0), 2)
    runs = spread(target, on(jax.random.key(1), target, runs, 3, jnp.ones(2, bool)), 3)
    position = of_chain(runs, jnp.ones(2, jnp.int32))
    after = back(jax.random.key(2), target, runs, position, 1)
    assert after.steps.tolist() == [*runs.steps[:2].tolist(), 0, 0, *runs.steps[4:].tolist()]


def test_one_call_runs_the_kernels_on_whole_runs_too():
    options = {"chains": 3, "draws": 5, "warmup": 2}
    found = po.mcmc(jax.random.key(0), rare(3, 0.9), kernel="suffix", initial="smc", **options)
    same = po.mcmc_sequences(jax.random.key(0), rare(3, 0.9), suffix(), start="smc", **options)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), found.values, same.values))
    with pytest.raises(ValueError, match='starts from "prior" or "smc", not from values by name; got initial for head'):
        po.mcmc(jax.random.key(0), rare(3, 0.9), kernel="suffix", initial={"head": 1}, **options)
    with pytest.raises(ValueError, match="initial must be values by the names of choices, got 'smc'"):
        po.mcmc(jax.random.key(0), rare(0, 0.9), initial="smc", **options)
