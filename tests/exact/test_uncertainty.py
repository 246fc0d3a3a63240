"""Promises about coverage, by enumeration: of all orders of the scores, and of all sequences of draws with their probabilities."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from scipy.special import betaincinv

from posterity.inference import uncertainty as u
from posterity.inference.enumeration.check import Difference, Report

LEVEL = 0.8


def at_most(law, promised, found, branches):
    """A report that holds where no probability of an error is above what was promised."""
    error = max(max(found) - promised, 0.0)
    return Report(law, error, 1e-12, len(found), branches, Difference("probability of an error", promised, max(found)) if error > 1e-12 else None)


def equal(law, expected, found, branches):
    error = abs(found - expected)
    return Report(law, error, 1e-12, 1, branches, Difference("expectation", expected, found) if error > 1e-12 else None)


def missed(quantile, n):
    """The probability that the last of n + 1 exchangeable scores lies above the quantile of the others."""
    orders = list(itertools.permutations(range(n + 1)))
    return sum(scores[-1] > quantile(scores[:-1], LEVEL) for scores in orders) / len(orders)


def test_conformal_sets_hold_the_truth_as_often_as_promised(laws):
    for n in (2, 4, 5, 6):
        rank = math.ceil((n + 1) * LEVEL - 1e-9)
        found = missed(u.conformal_quantile, n)
        laws.holds("split conformal", at_most("errors at most 1 - level", 1 - LEVEL, [found], math.factorial(n + 1)))
        laws.holds("split conformal", equal("coverage k / (n + 1)", min(rank / (n + 1), 1.0), 1 - found, math.factorial(n + 1)))


def test_a_rank_that_is_cut_off_at_n_is_refuted(laws):
    clipped = lambda scores, level: sorted(scores)[min(math.ceil((len(scores) + 1) * level), len(scores)) - 1]  # noqa: E731
    laws.fails("split conformal, rank cut off at n", at_most("errors at most 1 - level", 1 - LEVEL, [missed(clipped, 2)], 6))


def ever_out(interval, p, n):
    """The probability that one of the first n intervals leaves out p: all sequences of n draws."""
    sequences = np.array(list(itertools.product((0, 1), repeat=n)))
    probabilities = p ** sequences.sum(axis=1) * (1 - p) ** (n - sequences.sum(axis=1))
    out = []
    for hits in sequences:
        low, high = interval(hits)
        out.append(bool(((p < low - 1e-9) | (p > high + 1e-9)).any()))
    return float(probabilities @ np.array(out))


SEQUENCES = {
    "confidence sequence": lambda hits: u.confidence_sequence(hits, level=LEVEL),
    "betting sequence": lambda hits: u.betting_sequence(hits, level=LEVEL, grid=40),
}


@pytest.mark.parametrize("name", SEQUENCES)
def test_intervals_hold_at_all_times_at_once(laws, name):
    found = [ever_out(SEQUENCES[name], p, 7) for p in (0.1, 0.5)]
    laws.holds(name, at_most("ever out at most 1 - level", 1 - LEVEL, found, 2 * 2**7))
    assert max(found) > 0  # there are sequences on which it does go out


def test_an_interval_for_one_time_is_refuted_at_all_times(laws):
    def fixed(hits):
        """Clopper and Pearson's, which is exact at any one time, and conservative."""
        s = np.cumsum(hits)
        f = np.arange(1, len(hits) + 1) - s
        tail = (1 - LEVEL) / 2
        return np.where(s > 0, betaincinv(np.maximum(s, 1e-9), f + 1, tail), 0.0), np.where(f > 0, betaincinv(s + 1, np.maximum(f, 1e-9), 1 - tail), 1.0)

    laws.fails("an interval for one time, looked at always", at_most("ever out at most 1 - level", 1 - LEVEL, [ever_out(fixed, 0.5, 10)], 2**10))


def test_the_mixture_is_a_martingale(laws):
    for p in (0.2, 0.5):
        k = np.arange(13)
        mean = sum(math.comb(12, s) * p**s * (1 - p) ** (12 - s) * math.exp(u.log_mixture(s, 12 - s, p)) for s in k)
        laws.holds("confidence sequence", equal("the mixture's mean is 1", 1.0, float(mean), 13))


def test_the_mixture_stays_below_its_bound_for_a_thousand_draws(laws):
    """Forwards over the counts, leaving out the paths that have reached the bound before."""
    found, n = [], 1_000
    for p in (0.02, 0.3):
        inside = np.ones(1)  # by successes
        for t in range(1, n + 1):
            inside = np.append(inside * (1 - p), 0.0) + np.insert(inside * p, 0, 0.0)
            s = np.arange(t + 1)
            inside[u.log_mixture(s, t - s, p) >= -math.log1p(-LEVEL)] = 0.0
        found.append(1 - inside.sum())
    laws.holds("confidence sequence", at_most("ever out in 1,000 draws at most 1 - level", 1 - LEVEL, found, 2 * n**2 // 2))
    assert min(found) > 0.05  # it is no vacuous promise


def evidence(law, n, decide):
    """E[evidence against the mode "a"] and P(another answer is ever decided for), over all sequences of n draws."""
    mean, wrong = 0.0, 0.0
    for draws in itertools.product(law, repeat=n):
        probability = math.prod(law[x] for x in draws)
        decision = decide(draws)
        mean += probability * decision.evidence.get("a", decision.unseen) * (decision.draws == n)
        wrong += probability * (decision.answer not in (None, "a"))
    return mean, wrong


def test_decisions_are_wrong_as_seldom_as_promised(laws):
    level = 0.5  # so that within few draws there are decisions, and wrong ones
    _, found = evidence({"a": 0.4, "b": 0.3, "c": 0.3}, 7, lambda draws: u.decide(draws, level=level))
    laws.holds("decide", at_most("wrong at most 1 - level", 1 - level, [found], 3**7))
    assert found > 0.01


def test_bets_on_equals_are_fair(laws):
    """Where the mode has an equal, and the leader is one of the two, every bet is fair or (on a leader that comes less often) worse."""
    never = 1 - 1e-9  # a level at which nothing is decided
    mean, _ = evidence({"a": 0.5, "b": 0.5}, 7, lambda draws: u.decide(draws, level=never))
    laws.holds("decide", equal("fortune against an equal has mean 1", 1.0, mean, 2**7))
    mean, _ = evidence({"a": 0.4, "b": 0.3, "c": 0.3}, 6, lambda draws: u.decide(draws, level=never))
    laws.holds("decide", at_most("fortune against the mode has mean at most 1", 1.0, [mean], 3**6))


def test_a_decision_by_counts_is_refuted(laws):
    """Stop when one answer is twice as frequent as any other (and three times at least): as consensus exits do."""

    def consensus(draws):
        counts = Counter()
        for x in draws:
            counts[x] += 1
            (first, most), *rest = counts.most_common(2)
            if most >= 2 and most >= 2 * (rest[0][1] if rest else 0):
                return u.Decision(first, sum(counts.values()), dict(counts), {}, 1.0)
        return u.Decision(None, len(draws), dict(counts), {}, 1.0)

    _, wrong = evidence({"a": 0.4, "b": 0.3, "c": 0.3}, 6, consensus)
    laws.fails("decision at a consensus", at_most("wrong at most 1 - level", 0.5, [wrong], 3**6))
