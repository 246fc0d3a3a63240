"""The shipped model: what its card says of it is so."""

import dataclasses
import json
import re
from itertools import count, islice
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from posterity.models import weights
from posterity.models.lm import huggingface
from posterity.models.potentials.arithmetic import Alphabet
from posterity.models.programs.arithmetic import CHARACTERS, LEVELS, MAX_TEXT, check, is_held_out, trace
from posterity.models.weights import train_abacus
from posterity.models.weights.abacus_card import thinned, value_range
from posterity.models.weights.evaluate_abacus import Accuracy, accuracy, longest_text, sample_texts, unseen_prompts

HOME = Path(weights.__file__).parent
DIRECTORY, CARD = HOME / "abacus", HOME / "abacus.md"


@pytest.fixture(scope="module")
def abacus():
    return huggingface.load(DIRECTORY)


def rates_on_card() -> dict[int, float]:
    rows = re.findall(r"^\| (\d) \|.*\| (\d\.\d+) \| [\d.]+ to [\d.]+ \|$", CARD.read_text(encoding="utf-8"), re.MULTILINE)
    return {int(level): float(rate) for level, rate in rows}


def test_the_weights_are_small():
    assert 2e6 < (DIRECTORY / "model.safetensors").stat().st_size < 6e6


def test_the_tokenizer_knows_the_characters_of_arithmetic_and_an_end(abacus):
    decoder, tokenizer = abacus
    text = "47+6*(12-8)=47+6*4\n47+24\n71"
    assert tokenizer == train_abacus.tokenizer()
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.vocab_size == decoder.config.vocab_size == len(CHARACTERS) + 1
    assert len(tokenizer.end_ids) == 1
    assert Alphabet.of(tokenizer).codes[: len(CHARACTERS)] == tuple(range(len(CHARACTERS)))


def test_every_right_solution_fits_the_context(abacus):
    assert abacus[0].config.context_length >= MAX_TEXT


# Seeded, so a false alarm needs other numerics or random bits. Then the samples leave the band by chance with probability below
# 1e-5 a level: by the card, the band ends 4.6 standard deviations from level 6, and 20 failures against 2 expected from level 1.
def test_a_single_sample_solves_almost_all_of_the_easiest_level(abacus):
    assert accuracy(*abacus, level=1, count=400, seed=11).rate > 0.95


@pytest.mark.slow
def test_a_single_sample_solves_some_of_the_hardest_level(abacus):
    assert 0.3 <= accuracy(*abacus, level=6, count=300, seed=11).rate <= 0.6


def test_the_card_reports_every_level_and_accuracy_falls_with_it():
    rates = rates_on_card()
    assert list(rates) == list(LEVELS)
    assert rates[1] > 0.95
    assert 0.3 <= rates[6] <= 0.6
    assert list(rates.values()) == sorted(rates.values(), reverse=True)


def test_the_card_names_the_levels_and_the_run_as_they_are(abacus):
    card, record = CARD.read_text(encoding="utf-8"), json.loads((DIRECTORY / "training.json").read_text(encoding="utf-8"))
    for number, level in LEVELS.items():
        assert f"| {number} | {level.operations} | {level.digits} | {'yes' if level.parentheses else 'no'} | {value_range(level)} |" in card
    parameters = sum(x.size for x in jax.tree.leaves(nnx.state(abacus[0], nnx.Param)))
    assert f"{parameters:,} parameters" in card
    assert f"{record['steps']:,} steps in {record['minutes']:g} minutes" in card
    assert f"seed {record['seed']}" in card


def test_training_never_sees_a_held_out_prompt():
    texts = [text for batch in islice(train_abacus.batches(3), 30) for text in _texts(batch)]
    prompts = [text[: text.index("=") + 1] for text in texts]
    assert len(prompts) > 2_000
    assert not any(is_held_out(prompt) and len(prompt) > 4 for prompt in prompts)
    assert all(is_held_out(prompt) for level in LEVELS if level > 1 for prompt in unseen_prompts(0, level, 50))


def test_batches_hold_canonical_solutions_and_count_only_them():
    for batch in islice(train_abacus.batches(4), 5):
        for row, (tokens, counted) in enumerate(zip(batch.tokens, batch.weights, strict=True)):
            text = _texts(batch)[row]
            prompt, solution = text[: text.index("=") + 1], text[text.index("=") + 1 :]
            assert solution == "\n".join(trace(prompt))
            # Position i predicts token i + 1: the first counted one predicts the solution's first character, the last one the end.
            assert np.flatnonzero(counted).tolist() == list(range(len(prompt) - 1, len(text)))
            assert tokens[len(text)] == train_abacus.END


def test_the_learning_rate_warms_up_and_ends_at_zero():
    rates = [train_abacus.rate(done) for done in np.linspace(0, 1.2, 200)]
    assert rates[0] == rates[-1] == 0
    assert max(rates) <= 1
    assert np.argmax(rates) < 10


@pytest.mark.slow
def test_a_short_run_learns_and_saves_a_model_that_loads(tmp_path, monkeypatch):
    monkeypatch.setattr(train_abacus, "BATCH_TOKENS", 256)
    monkeypatch.setattr(train_abacus, "WIDTHS", (16,))
    monkeypatch.setattr(train_abacus, "MIXTURE", {LEVELS[1]: 1.0})
    small = dataclasses.replace(train_abacus.CONFIG, num_layers=1, hidden_size=32, intermediate_size=32, head_dim=8)
    monkeypatch.setattr(train_abacus, "CONFIG", small)
    decoder, record = train_abacus.train(minutes=1.0, seed=0, out=tmp_path, save_every=0.5, clock=count(0.0, 0.3).__next__)  # 200 steps
    losses = [loss for _, _, loss in record["curve"]]
    assert losses[-1] < 0.8 * losses[0]
    train_abacus.save(decoder, record, tmp_path)
    loaded, tokenizer = huggingface.load(tmp_path)
    assert sample_texts(jax.random.key(0), loaded, tokenizer, ["1+2="]) == sample_texts(jax.random.key(0), decoder, tokenizer, ["1+2="])


def test_no_right_text_is_cut_off_by_sampling():
    for level in LEVELS:
        for prompt in unseen_prompts(0, level, 50):
            assert len(prompt) + len("\n".join(trace(prompt))) + 1 <= longest_text(prompt)


def test_samples_are_checked_whole(abacus):
    prompts = unseen_prompts(3, 2, 20)
    texts = sample_texts(jax.random.key(3), *abacus, prompts)
    right = sum(text is not None and all(check(prompt, text)) for prompt, text in zip(prompts, texts, strict=True))
    answers = sum(text is not None and text.split("\n")[-1] == trace(prompt)[-1] for prompt, text in zip(prompts, texts, strict=True))
    assert right <= answers
    assert accuracy(*abacus, level=2, count=20, seed=3).solved == right


def test_wilsons_interval():
    # Newcombe (1998), table I: 81 of 263 gives .2553 to .3662, 0 of 20 gives 0 to .1611.
    assert Accuracy(81, 263).interval() == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert Accuracy(0, 20).interval() == pytest.approx((0.0, 0.1611), abs=5e-5)


def test_a_thinned_curve_keeps_the_mean_over_all_steps():
    curve = [(10, 0.5, 3.0), (30, 1.0, 2.0), (40, 1.5, 1.0), (45, 2.0, 0.5), (50, 2.5, 0.4)]
    rows = thinned(curve, 2)
    assert [row[0] for row in rows] == [40, 50]
    assert [row[2] for row in rows] == pytest.approx([(30 + 40 + 10) / 40, 0.45])


def _texts(batch: train_abacus.Batch) -> list[str]:
    """The texts of a batch, to their first end token."""
    return ["".join(CHARACTERS[i] for i in row[: row.tolist().index(train_abacus.END)]) for row in batch.tokens]
