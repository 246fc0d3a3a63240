"""Strategies by name: how rollouts of a problem are drawn, and how one answer is chosen of them. Many problems are drawn in one compiled program."""

import functools
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from posterity.inference import answers, search
from posterity.inference.answers import Choice
from posterity.models.lm.language_model import Prompt


class Rollouts(NamedTuple):
    """What was drawn for one problem, on the host."""

    answers: list[str]
    paths: list[Hashable]  # what tells one text from another
    weights: np.ndarray  # [n], of the posterior or selection; zero for those that it does not hold
    rewards: np.ndarray  # [n], the last of each, in [0, 1]
    log_probs: np.ndarray  # [n] of the texts, nats
    generated: np.ndarray  # [n] tokens of each
    scored: np.ndarray  # [n] steps of each, which the reward scored

    def first(self, n: int) -> "Rollouts":
        """The first n of independent rollouts: what drawing n gives."""
        return self._replace(**{name: part[:n] for name, part in self._asdict().items()})


class Sampler(NamedTuple):
    """A way to draw rollouts: `draw(key, program, n=n)` gives weighted values, as `reason` has them."""

    draw: Callable[..., Any]
    independent: bool = False  # then the first of many are few: one run serves all budgets


class Strategy(NamedTuple):
    """A sampler and a rule."""

    title: str
    sampler: str
    choose: Callable[[Rollouts], Choice] | None  # None for no choice: whether any rollout is right, the most that a rule could get out of them
    least: int = 1  # rollouts


def best(found: Rollouts) -> Choice:
    """The answer of the rollout with the best reward."""
    return answers.best(found.answers, np.where(found.weights > 0, found.rewards, -np.inf))


def vote(found: Rollouts) -> Choice:
    """A vote for each rollout."""
    return answers.majority(found.answers)


def weighted_vote(found: Rollouts) -> Choice:
    """Votes that count as much as their rewards."""
    return answers.majority(found.answers, weights=found.rewards if found.rewards.sum() > 0 else None)


def posterior_mode(found: Rollouts) -> Choice:
    """Votes that count as much as their weights."""
    return answers.majority(found.answers, weights=found.weights)


def best_of_majority(found: Rollouts) -> Choice:
    """Of answers with a tenth of the votes, the one whose rollouts have the best mean reward."""
    return answers.best_of_majority(found.answers, found.rewards, share=0.1)


def perplexity_consistency(found: Rollouts) -> Choice:
    """The answer whose distinct texts have the most probability, improbable ones left out."""
    return answers.rpc(found.answers, found.paths, found.log_probs)


def gibbs(key: Array, program: Any, *, n: int) -> search.Selection:
    """Particle Gibbs whose sweeps have n rollouts in all: four, or two of so few as four."""
    sweeps = 4 if n >= 8 else 2
    return search.particle_gibbs(key, program, n=n // sweeps, sweeps=sweeps)


SAMPLERS = {
    "rollouts": Sampler(search.repeated_sampling, independent=True),
    "steps": Sampler(search.step_best_of_n),
    "beams": Sampler(search.beam),
    "trees": Sampler(search.dvts),
    "lookahead": Sampler(search.lookahead),
    "rebase": Sampler(search.rebase),
    "entropic": Sampler(search.entropic_particle_filter),
    "particles": Sampler(search.particle_filter),
    "sweeps": Sampler(gibbs),
}
WIDTH = 4  # of beams and trees, by default: fewer rollouts they cannot have
STRATEGIES = {
    "any": Strategy("any rollout right", "rollouts", None),
    "sc": Strategy("self-consistency", "rollouts", vote),
    "rpc": Strategy("perplexity consistency", "rollouts", perplexity_consistency),
    "bon": Strategy("best of n", "rollouts", best),
    "wbon": Strategy("weighted best of n", "rollouts", weighted_vote),
    "bom": Strategy("best of majority", "rollouts", best_of_majority),
    "step-bon": Strategy("step-level best of n", "steps", best),
    "beam": Strategy("beam search", "beams", best, least=WIDTH),
    "dvts": Strategy("DVTS", "trees", weighted_vote, least=WIDTH),
    "lookahead": Strategy("lookahead", "lookahead", best, least=WIDTH),
    "rebase": Strategy("REBASE", "rebase", weighted_vote),
    "epf": Strategy("entropic filter", "entropic", best),
    "pf": Strategy("particle filter", "particles", posterior_mode),
    "pf-best": Strategy("particle filter, best", "particles", best),
    "pg": Strategy("particle Gibbs", "sweeps", posterior_mode, least=4),
}


class Drawn(NamedTuple):
    """What was drawn for some problems at once, as arrays of the host (while it is compiled, of JAX) with leading axis problems."""

    tokens: Any  # [problems, n, capacity], prompt first
    length: Any  # [problems, n]
    prompt_length: Any  # [problems, n]
    weights: Any  # [problems, n]
    rewards: Any  # [problems, n]
    log_probs: Any  # [problems, n]
    scored: Any  # [problems, n]
    generated: Any  # [problems] tokens of all texts that there ever were, also of those not kept
    calls: Any  # [problems]
    reward_calls: Any  # [problems]

    def rollouts(self, place: int, decode: Callable[[bytes], str]) -> Rollouts:
        """Those of one problem; `decode` reads the answer of a text's tokens, int32 bytes."""
        starts, ends = self.prompt_length[place], self.length[place]
        paths = [self.tokens[place, i, start:end].tobytes() for i, (start, end) in enumerate(zip(starts, ends, strict=True))]
        parts = self.weights[place], np.asarray(self.rewards[place], float), np.asarray(self.log_probs[place], float)
        return Rollouts([decode(path) for path in paths], list(paths), *parts, ends - starts, self.scored[place])


@functools.lru_cache(maxsize=64)
def drawing(sampler: Sampler, n: int, program_of: Callable[..., Any]) -> Callable[..., Drawn]:
    """`draw(keys, prompts, numbers, *arguments)`: n rollouts of `program_of(prompt, number, *arguments)` for each problem, all in one compiled program."""

    def one(key: Array, prompt: Prompt, number: Array, arguments: tuple) -> Drawn:
        return _kept(sampler.draw(key, program_of(prompt, number, *arguments), n=n))

    def all_of(keys: Array, prompts: Prompt, numbers: Array, arguments: tuple) -> Drawn:
        return jax.vmap(one, in_axes=(0, 0, 0, None))(keys, prompts, numbers, arguments)

    run = jax.jit(all_of)
    return lambda keys, prompts, numbers, *arguments: Drawn(*jax.device_get(run(keys, prompts, numbers, arguments)))


def _kept(result: Any) -> Drawn:
    """What the host needs of weighted texts (an `Inferred` or a `Selection` of `Reasoning`s); the memory of the model is left behind."""
    value = result.values
    text, ledger, weights = value.text, result.ledger, jnp.exp(result.log_weights)
    own = text.tokens, text.length, text.prompt_length, weights, value.reward, value.log_probability, value.steps
    return Drawn(*own, ledger.generated, ledger.calls, ledger.rewards)
