"""The device's line check against the host's exact one."""

import dataclasses
from functools import partial
from random import Random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers

import posterity as po
from posterity.models.lm.tokenizer import Tokenizer
from posterity.models.potentials.arithmetic import Alphabet, Checker, line_log_potential
from posterity.models.programs.arithmetic import CHARACTERS, LEVELS, check, generate, is_number, legal_next_lines, parse, trace

CAPACITY = 192
END = "<end>"


def character_tokenizer(characters: str) -> Tokenizer:
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({character: i for i, character in enumerate(characters)}, unk_token=""))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex(r"[\s\S]"), "isolated")
    backend.decoder = tokenizers.decoders.Fuse()
    backend.add_special_tokens([END])
    return Tokenizer(backend, end_ids=[len(characters)])


# Another order than any other tokenizer's, and characters that no line has.
TOKENIZER = character_tokenizer("x\n=*-+)(9081726354y")
ALPHABET = Alphabet.of(TOKENIZER)
potentials = jax.jit(jax.vmap(partial(line_log_potential, alphabet=ALPHABET)))


def verdicts(texts: list[str]) -> np.ndarray:
    """Whether the potential lets each text pass, in one batch."""
    rows, lengths = np.zeros((len(texts), CAPACITY), np.int32), np.zeros(len(texts), np.int32)
    for i, text in enumerate(texts):
        ids = TOKENIZER.encode(text)
        rows[i, : len(ids)], lengths[i] = ids, len(ids)
    found = np.asarray(potentials(jnp.asarray(rows), jnp.asarray(lengths)))
    assert set(np.unique(found)) <= {0.0, -np.inf}
    return found == 0.0


def mutations(rng: Random, line: str) -> list[str]:
    """Near misses: a character changed, dropped, inserted, doubled or swapped with its neighbour; a number off by a little."""
    place, other = rng.randrange(len(line)), rng.choice("0123456789+-*()=x")
    swapped = line[:place] + line[place : place + 2][::-1] + line[place + 2 :]
    return [
        line[:place] + other + line[place + 1 :],
        line[:place] + line[place + 1 :],
        line[:place] + other + line[place:],
        line[:place] + line[place] + line[place:],
        swapped,
        "0" + line,
        f"({line})",
    ]


def careless(line: str) -> list[str]:
    """What comes of reducing any operator in the text, whatever binds its operands, and of two reductions at once."""
    out = []
    for i, character in enumerate(line):
        if character in "+-*":
            left = line[:i][len(line[:i].rstrip("0123456789")) :]
            right = line[i + 1 :][: len(line[i + 1 :]) - len(line[i + 1 :].lstrip("0123456789"))]
            if left and right:
                a, b = int(left), int(right)
                value = {"+": a + b, "-": a - b, "*": a * b}[character]
                head, tail = line[: i - len(left)], line[i + 1 + len(right) :]
                out += [f"{head}{value}{tail}", f"{head}{abs(value) + 1}{tail}", f"{head}{value + 10}{tail}"]
                if head.endswith("(") and tail.startswith(")"):
                    out.append(f"{head[:-1]}{value}{tail[1:]}")
    out += [twice for once in legal_next_lines(line) for twice in legal_next_lines(once)]
    return out


def candidate_lines(seed: int, count: int) -> list[tuple[str, str, str]]:
    """(earlier text, well-formed line before, line after), right and wrong."""
    rng, found = Random(seed), []
    for level in LEVELS:
        for prompt in generate(seed, level, count):
            lines = [parse(prompt), *trace(prompt)]
            which = rng.randrange(len(lines) - 1)
            earlier = prompt + "".join(f"{line}\n" for line in lines[1 : which + 1])
            before, after = lines[which], lines[which + 1]
            afters = [*legal_next_lines(before), *careless(before), *mutations(rng, after), before, "", "0"]
            found += [(earlier, before, line) for line in afters if len(earlier) + len(line) < CAPACITY]
    return found


@pytest.mark.parametrize("ending", ["\n", END])
def test_a_line_passes_exactly_when_the_host_checker_says_so(ending):
    lines = candidate_lines(seed=1, count=60)
    assert len(lines) > 5_000
    passed = verdicts([earlier + after + ending for earlier, _, after in lines])
    expected = np.array([after in legal_next_lines(before) and is_number(after) == (ending == END) for _, before, after in lines])
    assert expected.sum() > 300
    assert (~expected).sum() > 3_000
    wrong = [lines[i] for i in np.flatnonzero(passed != expected)]
    assert not wrong, wrong[:5]


def test_nothing_is_said_between_line_ends():
    texts = [f"47+6*(12-8)={text}" for text in ("", "4", "9999", "47+6*4", "47+6*4\n", "47+6*4\n47+2")]
    assert verdicts(texts).all()


def test_a_whole_solution_passes_exactly_when_the_host_checker_accepts_every_line():
    rng, texts = Random(2), []
    for level in LEVELS:
        for prompt in generate(7, level, 30):
            solution = "\n".join(trace(prompt))
            texts += [(prompt, text) for text in [solution, *mutations(rng, solution)] if len(text) < 140]
    ends = [[i + 1 for i, character in enumerate(text) if character == "\n"] + [None] for _, text in texts]
    prefixes = [prompt + (text[:end] if end else text + END) for (prompt, text), places in zip(texts, ends, strict=True) for end in places]
    passed = iter(verdicts(prefixes).tolist())
    for (prompt, text), places in zip(texts, ends, strict=True):
        found, expected = [next(passed) for _ in places], check(prompt, text)
        # Beyond the first wrong line the line before is no longer well formed, and the particle is dead.
        first = expected.index(False) + 1 if False in expected else len(expected)
        assert found[:first] == expected[:first], (prompt, text)


@pytest.mark.parametrize(
    ("text", "passes"),
    [
        ("99999+0=99999<end>", True),
        ("99999+1=100000<end>", False),
        ("99999*99999=9999800001<end>", False),
        ("99999*42950=4294957050<end>", False),
        ("46341*46341=2147488281<end>", False),
        ("65536*65536=0<end>", False),
        ("0*99999=0<end>", True),
        ("0*99999=00<end>", False),
        ("5-7=-2<end>", False),
        ("5-7=2<end>", False),
        ("5-7+1=8+1\n", False),
        ("99999+1+2=00000+2\n", False),
        ("((((3+4))))=7<end>", True),
        ("(((3+4)*1))=((7*1))\n", True),
        ("(((3+4)*1))=(7*1)\n", False),
        ("8-3-2=8-1\n", False),
        ("8-3+2=8-5\n", False),
        ("2*3*4=2*12\n", False),
        ("2*3+4*5=2*3+20\n", True),
        ("2*3+4*5=6+20\n", False),
        ("2+3=5\n", False),
        ("2+3+4=5+4<end>", False),
        ("2+3+4=5+4=9<end>", False),
        ("2+3=2+3=5<end>", False),
        ("2+3=\n", False),
        ("2+3=<end>", False),
        ("2+3\n", False),
    ],
)
def test_hard_cases(text, passes):
    assert verdicts([text]).tolist() == [passes]


def test_a_line_longer_than_any_expression_is_wrong():
    assert not verdicts(["1+1=" + "2" * 100 + END, "1+1=2" + "x" * 40 + "\n"]).any()


def test_an_alphabet_needs_every_character():
    with pytest.raises(ValueError, match="no token for '7'"):
        Alphabet.of(character_tokenizer(CHARACTERS.replace("7", "")))


def test_it_compiles_once_for_all_texts():
    traced = []

    @jax.jit
    def potential(tokens, length):
        traced.append(None)
        return line_log_potential(tokens, length, ALPHABET)

    for text in ("1+2=3", "1+2=4<end>"):
        ids = TOKENIZER.encode(text)
        potential(jnp.array(ids + [0] * (16 - len(ids))), len(ids))
    assert len(traced) == 1


def test_as_a_reward_it_is_as_sure_as_it_was_told_and_remembers_what_was_wrong():
    """Three texts read line by line: a right one, one whose first line is wrong and the second right again, and one that stands still."""
    lm = po.load("abacus")
    reward, prompt = Checker(jnp.array(2.0), Alphabet.of(lm.tokenizer)), lm.prompt("1+2*3=")
    text = lm.start(prompt).source.spawn(3, 16).view()
    (end,) = lm.tokenizer.end_ids

    def grown(texts: list[list[int]]):
        tokens = [[*lm.tokenizer.encode("1+2*3="), *own] for own in texts]
        return dataclasses.replace(text, tokens=jnp.array([row + [0] * (22 - len(row)) for row in tokens]), length=jnp.array([len(row) for row in tokens]))

    moving, first = jnp.array([True, True, False]), [lm.tokenizer.encode("1+6\n"), lm.tokenizer.encode("1+5\n"), []]
    sure, start = 1 / (1 + np.exp(-2.0)), reward.begin(prompt, 3, 16)
    scores, state = reward.score(start, grown(first), moving)
    np.testing.assert_allclose(scores, [sure, 1 - sure, sure], rtol=1e-6)
    state = reward.select(state, jnp.array([0, 1, 0]))
    scores, _ = reward.score(state, grown([first[0] + [7, end], first[1] + [6, end], first[0]]), moving)
    np.testing.assert_allclose(scores, [sure, 1 - sure, sure], rtol=1e-6)
    scores, _ = reward.replace(sure=jnp.array(jnp.inf)).score(start, grown(first), moving)
    np.testing.assert_array_equal(scores, [1, 0, 1])
    np.testing.assert_array_equal(reward.rewind(start, reward.mark(state)), [True, False, True])
