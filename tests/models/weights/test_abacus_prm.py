"""The shipped reward model: what its card says of it is so, it reads texts the same way in one go and step by step, and its labels are the checker's."""

import dataclasses
import json
import random
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import posterity as po
from posterity.models import weights
from posterity.models.lm import huggingface
from posterity.models.lm.decoder import Decoder
from posterity.models.potentials.reward import Reward, RewardModel
from posterity.models.programs.arithmetic import CHARACTERS, LEVELS, MAX_TEXT, check, is_held_out, is_number, legal_next_lines, parse, trace
from posterity.models.weights import train_abacus_prm
from posterity.models.weights.abacus_rollouts import END, STEP_END, WIDTHS, labelled, sampled, still_right
from posterity.models.weights.evaluate_abacus import unseen_prompts
from posterity.models.weights.evaluate_abacus_prm import Steps, auroc, auroc_of_rivals, calibration, error, interval, measured, steps_of

HOME = Path(weights.__file__).parent
DIRECTORY, CARD = HOME / "abacus-prm", HOME / "abacus-prm.md"


@pytest.fixture(scope="module")
def reward() -> RewardModel:
    return po.load("abacus-prm")


@pytest.fixture(scope="module")
def card() -> str:
    return CARD.read_text(encoding="utf-8")


def test_the_files_are_small_and_none_is_pickled():
    files = {path.name for path in DIRECTORY.iterdir()}
    assert files == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "training.json"}
    assert sum(path.stat().st_size for path in HOME.rglob("*.safetensors")) < 12e6
    settings = json.loads((DIRECTORY / "config.json").read_text(encoding="utf-8"))
    assert settings["architectures"] == ["LlamaForTokenClassification"]
    assert settings["id2label"] == {"0": "right"}


def test_a_damaged_file_is_refused(tmp_path):
    for path in DIRECTORY.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    settings = json.loads((DIRECTORY / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps(settings | {"intermediate_size": settings["intermediate_size"] + 8}))
    with pytest.raises(ValueError, match="shape"):
        po.load_classifier(f"hf:{tmp_path}")


def test_it_loads_as_a_reward_with_the_tokens_of_abacus(reward):
    assert isinstance(reward, Reward)
    assert reward.classifier.labels == ("right",)
    assert reward.classifier.tokenizer == po.load("abacus").tokenizer
    assert reward.classifier.decoder.config.context_length >= MAX_TEXT
    with pytest.raises(ValueError, match=r"'abacus'.*'abacus-prm'"):
        po.load("abacus-pmr")


def started(reward: RewardModel, prompt: str, n: int, steps: int):
    """n texts that hold the prompt alone, with room for so many tokens, and what the reward has read of them."""
    lm = po.load("abacus")
    text = lm.start(prompt).source.spawn(n, steps).view()
    return lm.prompt(prompt), text, reward.begin(lm.prompt(prompt), n, steps)


def grown(text, rows: list[list[int]]):
    """The texts with these tokens after the prompt."""
    start = int(text.prompt_length[0])
    tokens = np.asarray(text.tokens).copy()
    for row, own in zip(tokens, rows, strict=True):
        row[start : start + len(own)] = own
    return dataclasses.replace(text, tokens=jnp.asarray(tokens), length=jnp.array([start + len(own) for own in rows]))


@pytest.mark.slow
def test_scores_are_the_same_read_at_once_and_step_by_step_after_resampling(reward):
    """Three texts of one prompt, one of them a copy that goes another way; without a cache, in one call, and line by line with copies between."""
    prompt, encode = "47+6*(12-8)=", reward.classifier.tokenizer.encode
    first = [encode("47+6*4\n"), encode("47+6*3\n"), encode("47+")]
    ancestors = jnp.array([0, 0, 2])
    second = [first[0] + encode("47+24\n"), first[0] + encode("47+23\n"), first[2] + encode("6*4\n")]
    everyone = jnp.ones(3, bool)
    _, text, fresh = started(reward, prompt, 3, 16)
    score = jax.jit(lambda reward, state, texts, where: reward.score(state, texts, where))
    early, state = score(reward, fresh, grown(text, first), everyone)
    late, state = score(reward, reward.select(state, ancestors), grown(text, second), everyone)
    at_once, _ = score(reward, fresh, grown(text, second), everyone)
    plain = [1 / (1 + np.exp(-reward.classifier.scores([prompt + reward.classifier.tokenizer.decode(row) for row in rows])[:, 0])) for rows in (first, second)]
    np.testing.assert_allclose(early, plain[0], atol=1e-5)
    np.testing.assert_allclose(late, plain[1], atol=1e-5)
    np.testing.assert_allclose(at_once, late, atol=1e-6)
    longer, _ = score(reward, state, grown(text, [row + encode("4") for row in second]), jnp.array([True, False, True]))
    assert longer[1] == late[1]  # one that is not read keeps what it had


def right_solutions(prompt: str) -> list[list[int]]:
    """Every right solution of a prompt, in tokens."""

    def lines(line: str) -> list[str]:
        return [after if is_number(after) else f"{after}\n{rest}" for after in legal_next_lines(line) for rest in ([""] if is_number(after) else lines(after))]

    return [[*(CHARACTERS.index(c) for c in text), END] for text in lines(parse(prompt))]


@pytest.mark.parametrize("prompt", ["2*3+4*5=", "(1+2)*(9-5)=", "7-3=", "10*(3+4)+2="])
def test_a_beginning_is_right_exactly_if_some_right_solution_begins_like_that(prompt):
    beginnings = {tuple(solution[:i]) for solution in right_solutions(prompt) for i in range(len(solution) + 1)}
    rng = random.Random(0)
    for _ in range(300):
        tokens = list(rng.choice(right_solutions(prompt)))
        for _ in range(rng.randint(0, 2)):  # changed, cut or lengthened somewhere
            place = rng.randrange(len(tokens))
            tokens[place : place + rng.randint(0, 1)] = [rng.randrange(END)] * rng.randint(0, 1)
            tokens = tokens or [END]
        assert still_right(prompt, tokens) == [tuple(tokens[: i + 1]) in beginnings for i in range(len(tokens))]


def test_at_the_end_the_label_is_the_checkers_verdict():
    for prompt in unseen_prompts(5, 4, 30):
        lines = trace(prompt)
        for wrong in (None, 0, len(lines) - 1):
            text = "\n".join(line if i != wrong else "1" + line for i, line in enumerate(lines))
            verdicts = still_right(prompt, [*(CHARACTERS.index(c) for c in text), END])
            assert verdicts[-1] == all(check(prompt, text)) == (wrong is None)
            assert verdicts == sorted(verdicts, reverse=True)  # once wrong, always wrong


def test_labels_stand_where_the_tokens_do_and_prompts_do_not_count():
    rollouts = labelled([("7-3=", [4, END]), ("1+1+1=", [2, 10, 1, 16, 4, END])])
    assert rollouts.tokens.shape[1] in WIDTHS
    assert rollouts.counts[:, :13].tolist() == [[0] * 4 + [1, STEP_END] + [0] * 7, [0] * 6 + [1, 1, 1, STEP_END, 1, STEP_END] + [0]]
    assert np.flatnonzero(rollouts.right[0]).tolist() == [4, 5]
    assert np.flatnonzero(rollouts.right[1]).tolist() == [6, 7, 8, 9]


def test_training_sees_no_held_out_prompt_and_every_text_once():
    rng = random.Random(1)
    prompts = [train_abacus_prm.training_prompt(rng) for _ in range(2_000)]
    assert not any(is_held_out(prompt) and len(prompt) > 4 for prompt in prompts)
    lengths = np.random.default_rng(0).integers(6, 184, size=5_000)
    (widths, rows) = zip(*train_abacus_prm.batches(lengths, 1, 0), strict=True)
    seen = np.concatenate(rows)
    assert len(np.unique(seen)) == len(seen) > 4_500
    assert all((lengths[own] <= width).all() for width, own in zip(widths, rows, strict=True))


@pytest.fixture(scope="module")
def small() -> Decoder:
    config = dataclasses.replace(huggingface.load(HOME / "abacus")[0].config, num_layers=1, hidden_size=16, intermediate_size=16, head_dim=4)
    return Decoder(config, rngs=nnx.Rngs(0))


def test_the_second_task_is_how_improbable_each_token_was_and_all_so_far(small):
    rollouts = labelled([("7-3=", [4, END]), ("1+1+1=", [2, 10, 1, 16, 4, END])] * 60)
    found = np.expm1(train_abacus_prm.surprises(small, rollouts)[1])
    log_probs = jax.nn.log_softmax(small.logits(small(jnp.asarray(rollouts.tokens[1:2, :12]))[0]))[0]
    own = np.array([-float(log_probs[i - 1, rollouts.tokens[1, i]]) for i in range(6, 12)])
    np.testing.assert_allclose(found[6:12], np.stack([own, np.cumsum(own)], axis=-1), rtol=1e-4)
    assert not found[:6].any()


@pytest.mark.slow
def test_training_goes_on_where_it_was_stopped_and_learns(small, tmp_path, monkeypatch):
    """Labels that one token gives away, by a run that is broken off between two saves and started again, and by one that is not."""
    rng = np.random.default_rng(0)
    rollouts = labelled([("7-3=", [int(digit), END]) for digit in rng.choice([4, 5], size=6_000)])
    surprise = train_abacus_prm.surprises(small, rollouts)
    monkeypatch.setattr(train_abacus_prm, "SAVE_EVERY", 0)
    (tmp_path / "whole").mkdir()
    (tmp_path / "broken").mkdir()
    decoder, record = train_abacus_prm.train(train_abacus_prm.warm_started(small, 0), rollouts, surprise, 1, 0, tmp_path / "whole")
    assert record["curve"][-1][2] < 0.5 * record["curve"][0][2]

    class Stopped(Exception):
        pass

    keep = train_abacus_prm._keep

    def keep_once(*args):
        keep(*args)
        raise Stopped

    monkeypatch.setattr(train_abacus_prm, "_keep", keep_once)
    with pytest.raises(Stopped):
        train_abacus_prm.train(train_abacus_prm.warm_started(small, 0), rollouts, surprise, 1, 0, tmp_path / "broken")
    monkeypatch.setattr(train_abacus_prm, "_keep", keep)
    again, resumed = train_abacus_prm.train(train_abacus_prm.warm_started(small, 0), rollouts, surprise, 1, 0, tmp_path / "broken")
    assert [tuple(row[::2]) for row in resumed["curve"]] == [tuple(row[::2]) for row in record["curve"]]
    for one, other in zip(jax.tree.leaves(nnx.state(decoder, nnx.Param)), jax.tree.leaves(nnx.state(again, nnx.Param)), strict=True):
        np.testing.assert_array_equal(one, other)
    with pytest.raises(ValueError, match="another run"):
        train_abacus_prm.train(train_abacus_prm.warm_started(small, 0), rollouts, surprise, 2, 0, tmp_path / "broken")


def test_a_warm_start_has_abacus_behind_a_new_head(small):
    decoder = train_abacus_prm.warm_started(small, 1)
    tokens = jnp.array([[1, 10, 2, 15, 3]])
    np.testing.assert_allclose(decoder(tokens)[0], small(tokens)[0], atol=1e-6)
    assert decoder.config == dataclasses.replace(small.config, num_layers=3, tied_head=False, head_bias=True, labels=("right",))


def test_auroc_counts_pairs():
    rng = np.random.default_rng(2)
    scores, right = np.round(rng.random(200), 1), rng.random(200) < 0.4
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[right] for b in scores[~right]]
    assert auroc(scores, right) == pytest.approx(np.mean(pairs))
    assert auroc(-scores, right) == pytest.approx(1 - np.mean(pairs))
    assert auroc(scores, np.arange(200) < 3) is None


def planted(right: np.ndarray, scores: np.ndarray) -> Steps:
    n = len(right)
    return Steps(scores, right, np.ones(n, bool), np.ones(n, bool), np.arange(n) // 10, np.zeros(n), np.full(n, 5))


def test_rivals_are_texts_of_one_problem():
    """Scores that only know how hard a problem is tell texts apart, but not rivals; then scores that know the texts of each problem, at any level."""
    right = np.tile([True] * 8 + [False] * 2 + [True] * 2 + [False] * 8, 20)
    hard = planted(right, np.repeat([0.8, 0.2], 10)[np.arange(400) % 20])
    assert auroc_of_rivals(hard) == 0.5
    assert auroc(hard.scores, right) == pytest.approx(0.8)
    knows = planted(right, 0.1 * right + np.repeat([0.0, 0.5], 10)[np.arange(400) % 20])
    assert auroc_of_rivals(knows) == 1.0
    assert auroc(knows.scores, right) < 0.7
    assert interval(knows, auroc_of_rivals) == (1.0, 1.0)
    assert auroc_of_rivals(planted(np.ones(40, bool), np.ones(40))) is None


def test_a_calibrated_score_has_a_small_calibration_error_and_an_overconfident_one_a_large():
    """4,000 steps that are right as often as their score says: the error is at most ten bins' standard errors of .025, about .013 on average."""
    rng = np.random.default_rng(3)
    scores = rng.random(4_000)
    right = rng.random(4_000) < scores
    bins = calibration(planted(right, scores))
    assert sum(n for n, _, _ in bins) == 4_000
    assert error(bins) < 0.04
    assert error(calibration(planted(right, np.round(scores)))) == pytest.approx(0.25, abs=0.03)


def figures_on_card(card: str) -> dict[int, list[str]]:
    section = card[card.index("| level | right texts") : card.index("## Calibration")]
    return {int(row[0]): row[1:] for row in (re.split(r"\s*\|\s*", line.strip("| ")) for line in section.splitlines()) if row[0].isdigit()}


def test_the_card_reports_every_level_and_an_imperfect_model(card):
    figures = figures_on_card(card)
    assert list(figures) == list(LEVELS)
    for level in (3, 4, 5, 6):
        assert 0.6 < float(figures[level][1]) < 1.0
    degraded = [line for line in card[card.index("## Made worse") : card.index("and with a bias")].splitlines() if line.startswith("| 6 |")]
    rates = [float(x) for x in re.findall(r"\d\.\d+", degraded[0])]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] == float(figures[6][1])
    assert rates[-1] < 0.5 + 0.7 * (rates[0] - 0.5)


def test_the_card_names_the_run_as_it_is(card, reward):
    record = json.loads((DIRECTORY / "training.json").read_text(encoding="utf-8"))
    parameters = sum(x.size for x in jax.tree.leaves(reward.classifier.weights))
    assert f"{parameters:,} parameters" in card
    assert f"{record['texts']:,} texts that Abacus wrote" in card
    assert f"seed {record['seed']}, {record['steps']:,} steps over {record['tokens']:,} tokens" in card


# Seeded, so a false alarm needs other numerics or random bits; the band is more than five standard errors wide on either side.
@pytest.mark.slow
def test_its_auroc_on_hard_problems_is_what_the_card_says(reward, card):
    decoder, abacus = reward.classifier.decoder, huggingface.load(HOME / "abacus")[0]
    found = measured(steps_of(decoder, abacus, level=6, count=300, seed=12))
    assert found.hard == pytest.approx(float(figures_on_card(card)[6][1]), abs=0.1)


@pytest.mark.slow
def test_sampled_texts_end_or_are_cut_where_no_right_one_could_go_on():
    abacus, prompts = huggingface.load(HOME / "abacus")[0], ["7-3=", "2+3*4=", "9-(9-2)="]
    solutions = sampled(jax.random.key(0), abacus, prompts)
    assert [all(still_right(prompt, solution)) for prompt, solution in zip(prompts, solutions, strict=True)] == [True] * 3
    assert all(solution[-1] == END for solution in solutions)
