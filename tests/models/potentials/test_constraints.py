"""Texts under a constraint satisfy it, whatever their tokens, the seed, the temperature or the room."""

import json
import random
import re

import jax
import jax.numpy as jnp
import jsonschema
import numpy as np
import pytest

import posterity as po
from posterity.models.potentials import (
    at_most,
    contains,
    disk,
    in_order,
    json_schema,
    length,
    of_characters,
    over,
    regex,
    safe,
    stopped,
    tokens,
    until,
    weighted_grammar,
    weighted_texts,
    without,
)
from posterity.tests.fixtures.byte_texts import language_model, tokenizer
from posterity.tests.fixtures.patterns import PATTERNS, SCHEMAS

CHARACTERS = 'aabcxyz019 .,-+é日😀İß\n\t"{}[]:_/@#'
ROOMS = (8, 32, 128)  # tokens
FEW = [r"(😀|é|a){4}", r"[^é]+é"]


def written(constraint, seed, room, temperature=1.0):
    """Four texts under a constraint by random next-token laws, as bytes; each has a weight."""
    posterior = po.smc(jax.random.key(seed), po.constrained(language_model(), "a", constraint, max_tokens=room, temperature=temperature), n=4)
    assert np.isfinite(np.asarray(posterior.log_weights)).any()
    texts, spelled = posterior.values, tokenizer().token_bytes
    for row, begin, end, weight in zip(np.asarray(texts.tokens), np.asarray(texts.prompt_length), np.asarray(texts.length), np.asarray(posterior.log_weights)):
        if weight > -np.inf:
            yield b"".join(spelled[token] for token in row[begin:end] if token not in tokenizer().end_ids)


def rooms(automaton):
    """The least room that is among ROOMS, so that compiled code is shared, or exactly what the shortest text takes."""
    least = tokens.shortest(over(automaton, tokenizer()))
    return next(room for room in ROOMS if room >= least)


def check_pattern(pattern, seed):
    automaton = regex(pattern)
    for temperature in (0.3, 3.0):
        for text in written(automaton, seed, rooms(automaton), temperature):
            assert re.fullmatch(pattern, text.decode()), (pattern, text)


def check_schema(schema, seed):
    automaton = json_schema(schema)
    for temperature in (0.3, 3.0):
        for text in written(automaton, seed, rooms(automaton), temperature):
            jsonschema.validate(json.loads(text), schema, cls=jsonschema.Draft202012Validator)


@pytest.mark.parametrize("pattern", FEW)
def test_every_text_matches(pattern):
    check_pattern(pattern, 0)


@pytest.mark.slow
@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_text_matches_each_of_a_hundred_patterns(pattern):
    for seed in range(3):
        check_pattern(pattern, seed)


def test_every_text_satisfies_the_schema():
    check_schema(SCHEMAS[17], 0)


@pytest.mark.slow
@pytest.mark.parametrize("schema", SCHEMAS, ids=str)
def test_every_text_satisfies_each_of_a_hundred_schemas(schema):
    for seed in range(2):
        check_schema(schema, seed)


def walked(automaton, pick, most=60):
    """A text of the set, byte by byte at random, and from `most` bytes on the shortest way to an end."""
    distance = np.where(automaton.accepting, 0.0, np.inf)
    for _ in range(automaton.states):
        onward = np.where(automaton.following >= 0, distance[automaton.following], np.inf).min(axis=1) + 1
        if np.array_equal(onward := np.minimum(distance, onward), distance):
            break
        distance = onward
    state, text = 0, b""
    while not (automaton.accepting[state] and (len(text) >= most or pick.random() < 0.2 or not (automaton.following[state] >= 0).any())):
        ways = np.flatnonzero(automaton.following[state] >= 0)
        if len(text) >= most:
            ways = ways[[np.argmin(distance[automaton.following[state, ways]])]]
        byte = int(pick.choice(ways.tolist()))
        state, text = automaton.following[state, byte], text + bytes([byte])
    return text.decode()


def test_a_hundred_schemas_accept_only_what_satisfies_them():
    pick = random.Random(0)
    for schema in SCHEMAS:
        automaton, validator = json_schema(schema), jsonschema.Draft202012Validator(schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER)
        for _ in range(20):
            text = walked(automaton, pick)
            assert automaton.accepts(text)
            assert validator.is_valid(json.loads(text)), (schema, text)
    assert len(SCHEMAS) == 100


def test_stop_strings_end_texts_to_the_byte():
    # Tokens that bridge the stop, or write beyond it, are as good as any: the text up to it is judged.
    stop, constraint = "é", contains("é") & without("aa")
    posterior = po.smc(jax.random.key(0), po.constrained(language_model(), "a", constraint, max_tokens=8, stop=stop), n=8)
    spelled = tokenizer().token_bytes
    for text, weight in zip(*stacked(posterior)):
        written = b"".join(spelled[token] for token in text if token not in tokenizer().end_ids)
        before = [token for token in text if token not in tokenizer().end_ids][:-1]
        assert stop.encode() not in b"".join(spelled[token] for token in before)  # it ended with the token that completed the stop
        head, found, _ = written.partition(stop.encode())
        assert weight == -np.inf or (found and constraint.accepts(head + found))


def stacked(posterior):
    """The generated token ids of each text, and its log weight."""
    texts = posterior.values
    rows = zip(np.asarray(texts.tokens), np.asarray(texts.prompt_length), np.asarray(texts.length))
    return [row[begin:end].tolist() for row, begin, end in rows], np.asarray(posterior.log_weights)


def test_the_law_of_texts_with_a_stop_is_a_plain_sum():
    lm = po.tabular.ngram(["abca", "cab", "bba"], order=2)
    free = po.exact(po.constrained(lm, "a", regex("[abc]*"), max_tokens=4))
    masses = {}
    for text, estimate in free.answers().items():
        head, found, _ = text.partition("ca")
        if (head + found).count("b") == 1:
            masses[head + found] = masses.get(head + found, 0.0) + estimate.value * np.exp(free.log_evidence)
    once = regex("[^b]*b[^b]*")
    assert po.check.same_meaning(po.constrained(lm, "a", once, max_tokens=4, stop="ca"), masses, tolerance=1e-5)


@pytest.mark.slow
def test_a_function_of_text_is_asked_token_by_token_where_it_forbids():
    # Each step a token is drawn again until the function allows it, so that nothing is lost to a forbidden one.
    lm, calls = po.tabular.ngram(["abcab", "bca", "cabb", "abab"], order=2), []

    def rule(text, whole):
        calls.append((text, whole))
        return -np.inf if "ab" in text else 0.0

    judged = po.potentials.judge(rule, lm.tokenizer, max_tokens=6)
    posterior = po.smc(jax.random.key(0), po.constrained(lm, "a", judged, max_tokens=6, ask=2), n=32, threshold=0.0)
    assert np.isfinite(np.asarray(posterior.log_weights)).all()
    exact = po.exact(po.constrained(lm, "a", without("ab"), max_tokens=6)).log_evidence
    assert abs(posterior.log_evidence - exact) < 5 * posterior.log_evidence_error  # a false alarm in a million, were it normal
    assert len(calls) == len(set(calls))


def test_a_hundred_patterns_accept_what_python_matches():
    pick = random.Random(0)
    for pattern in PATTERNS:
        automaton = regex(pattern)
        for _ in range(60):
            text = "".join(pick.choice(CHARACTERS) for _ in range(pick.randrange(5)))
            assert automaton.accepts(text) == bool(re.fullmatch(pattern, text)), (pattern, text)
    assert len(PATTERNS) == 100


def test_a_budget_is_met_exactly():
    automaton = regex("[a-c]{3}|日本語{20}")
    least = tokens.shortest(over(automaton, tokenizer()))
    for text in written(automaton, 0, least):
        assert len(text) == 3
    with pytest.raises(ValueError, match=f"fits into {least - 1} tokens; the shortest takes {least}"):
        po.constrained(language_model(), "a", automaton, max_tokens=least - 1)


@pytest.mark.slow
def test_combinations_of_texts():
    automaton = contains("日") & without("aa", "é") & length("characters", 3, 4) & regex(r".*")
    for text in written(automaton, 0, 8):
        decoded = text.decode()
        assert "日" in decoded
        assert "aa" not in decoded
        assert 3 <= len(decoded) <= 4


@pytest.mark.parametrize(
    ("automaton", "holds"),
    [
        (contains("ab", "ba"), lambda t: "ab" in t and "ba" in t),
        (in_order("ab", "b", "a"), lambda t: re.search("ab.*b.*a", t, re.DOTALL) is not None),
        (without("ab", "bb", "日"), lambda t: not re.search("ab|bb|日", t)),
        (at_most({"ab": 2, "b": 1}, 3), lambda t: 2 * t.count("ab") + t.count("b") <= 3),
        (stopped(contains("日"), "ab"), lambda t: "日" in "".join(t.partition("ab")[:2])),
        (until("ab", "bb"), lambda t: re.fullmatch("((?!ab|bb).)*.?(ab|bb)", t, re.DOTALL) is not None and not re.search("ab|bb", t[:-1])),
        (of_characters("a日é"), lambda t: set(t) <= set("a日é")),
        (length("characters", 1, 3), lambda t: 1 <= len(t) <= 3),
        (length("words", 2), lambda t: len(t.split()) >= 2),
        (length("lines", 1, 2), lambda t: 1 <= len(t.split("\n")) - (t.endswith("\n") or not t) <= 2),
        (length("bytes", 2, 5), lambda t: 2 <= len(t.encode()) <= 5),
        (~contains("a") | length("characters", 4, 4), lambda t: "a" not in t or len(t) == 4),
    ],
)
def test_automata_of_texts_say_what_python_says(automaton, holds):
    pick = random.Random(1)
    texts = ["".join(pick.choice("aabb日é \n") for _ in range(pick.randrange(8))) for _ in range(400)]
    assert {holds(text) for text in texts} == {True, False}
    for text in texts:
        assert automaton.accepts(text) == holds(text), text


def test_tokens_lead_where_their_bytes_lead():
    automaton = regex(r"[^é]*é(日|x)*")
    lifted = over(automaton, tokenizer())
    ids = {token: i for i, token in enumerate(tokenizer().token_bytes)}
    assert max(map(len, ids)) > 2  # some tokens bridge characters
    pick = random.Random(2)
    update = jax.jit(lifted.update)
    for _ in range(100):
        state, allowed, text = lifted.start(), True, b""
        for token in pick.choices(range(1, tokenizer().vocab_size), k=4):
            state, gain = update(state, token)
            allowed &= bool(gain == 0)
            text += tokenizer().token_bytes[token]
        if allowed and lifted.complete(state) == 0:
            assert automaton.accepts(text)
        if automaton.accepts(text):
            assert allowed
            assert lifted.complete(state) == 0


@po.program
def bootstrap(lm, prompt, potential):
    """Tokens by the model's law, weighed by whether they are allowed."""

    def step(carry, _):
        text, state = carry
        token = po.sample("token", text.next())
        after, gain = potential.update(state, token)
        po.factor("allowed", gain)
        return text.push(token), after

    text, state = po.scan(step, (lm.start(prompt), potential.start()), length=9, until=lambda carry: carry[0].ended)
    po.factor("complete", jnp.where(text.last == lm.tokenizer.end_ids[0], 0.0, potential.complete(state)))
    return text


@pytest.mark.slow
def test_looking_ahead_takes_the_variance_of_the_evidence_down_tenfold():
    # A rare word at the end of at most nine letters. Seeds are fixed; over others the ratio of variances has been far above 10.
    lm = po.tabular.ngram(["abcab", "bca", "cabb", "abab"], order=2)
    automaton, own = over(regex("[abc]{5,}cbb"), lm.tokenizer), np.exp(np.asarray(lm.model().reader.log_probs)).mean(axis=0)
    plain, ahead = bootstrap(lm, lm.prompt("a"), automaton), po.constrained(lm, "a", automaton.within(9, own), max_tokens=9)
    exact = po.exact(plain).log_evidence

    def ratios(program):
        keys = jax.random.split(jax.random.key(0), 200)
        return np.exp(np.asarray(jax.jit(jax.vmap(lambda key: po.smc(key, program, n=32).log_evidence))(keys)) - exact)

    plain, ahead = ratios(plain), ratios(ahead)
    assert plain.var() > 10 * ahead.var()
    assert abs(ahead.mean() - 1) < 5 * ahead.std() / 200**0.5  # a false alarm in two million


def test_tables_are_kept_and_damage_is_mended(tmp_path, monkeypatch):
    monkeypatch.setenv("POSTERITY_CACHE", str(tmp_path / "new"))
    monkeypatch.setattr(tokens, "WORTH_KEEPING", 0)
    automaton = regex("[a-z]+é")
    made = over(automaton, tokenizer())
    (file,) = disk.folder().iterdir()
    monkeypatch.setattr(tokens, "lifted", lambda *_: pytest.fail("made again"))
    for a, b in zip(jax.tree.leaves(made), jax.tree.leaves(over(automaton, tokenizer())), strict=True):
        np.testing.assert_array_equal(a, b)
    monkeypatch.undo()
    monkeypatch.setenv("POSTERITY_CACHE", str(tmp_path / "new"))
    monkeypatch.setattr(tokens, "WORTH_KEEPING", 0)
    whole = file.read_bytes()
    for damaged in (b"", whole[:100], whole[:-1] + bytes([whole[-1] ^ 1])):
        file.write_bytes(damaged)
        over(automaton, tokenizer())
        assert file.read_bytes() == whole
    monkeypatch.setenv("POSTERITY_CACHE", str(file / "no folder"))
    over(automaton, tokenizer())


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: regex("a(b"), "missing .* at position 1"),
        (lambda: regex("(?=a)b"), "no look-around"),
        (lambda: regex(r"a[^\s\S]"), "matched by no text"),
        (lambda: json_schema("{"), "no JSON"),
        (lambda: json_schema({"type": "integer", "minimum": 3}), "'minimum' at # would not be kept"),
        (lambda: json_schema({"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}), "'uniqueItems' at #/properties/a"),
        (lambda: json_schema({"type": "string", "minLength": 5, "maxLength": 2}), "maxLength must be"),
        (lambda: json_schema({"type": "string", "pattern": ".*"}), "quotes"),
        (lambda: json_schema({"type": "string", "format": "ipv4"}), "format 'ipv4' at # is not known"),
        (lambda: json_schema({"type": "integer", "enum": ["a"]}), "not of type"),
        (lambda: json_schema({"type": "object", "properties": {}, "required": ["a"]}), "required"),
        (lambda: over(contains("a") & ~contains("a"), tokenizer()), "no text satisfies"),
        (lambda: over(regex("é"), po.load("abacus").tokenizer), "no text satisfies"),
        (lambda: over(regex("a"), tokenizer()).within(3, "zipf"), "law must be"),
        (lambda: contains(""), "not empty"),
        (lambda: at_most({"a": 0}, 2), "costs must be whole numbers from 1 on"),
        (lambda: safe(over(regex("a"), tokenizer()), -1.0), "budget must be finite"),
        (lambda: weighted_texts({"a": -1.0}, tokenizer()), "weight of ending in 'a' must be finite and not negative"),
        (lambda: weighted_texts({}, tokenizer()), "no text has a weight"),
        (lambda: weighted_grammar({"S": {"S S": 1, "a": 1}}, tokenizer()), "sum to infinity"),
        (lambda: weighted_grammar({"S": {"T a": 1}}, tokenizer()), "'T' in S -> T a has no rules"),
        (lambda: weighted_grammar({"S": {"a S": 1}}, tokenizer()), "no text that 'S' writes"),
        (lambda: po.constrained(language_model(), "a", regex("a"), max_tokens=3, ask=0), "ask must be a whole number"),
        (lambda: po.constrained(language_model(), "a", regex("a"), max_tokens=3, stop=""), "stop must not be empty"),
        (lambda: length("tokens", 3), "unit must be"),
        (lambda: over(regex("a"), tokenizer()) ** 0.0, "exponent must be positive"),
    ],
)
def test_what_cannot_be_is_said_when_it_is_made(make, says):
    with pytest.raises(ValueError, match=says):
        make()
