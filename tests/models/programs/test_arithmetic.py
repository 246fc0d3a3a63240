"""Problems of arithmetic and the exact check of their solutions, against Python's own grammar of expressions."""

import ast
import re
from itertools import pairwise
from random import Random

import pytest

from posterity.models.programs.arithmetic import (
    LARGEST,
    LEVELS,
    MAX_TEXT,
    Level,
    check,
    generate,
    is_held_out,
    is_number,
    is_reduction,
    legal_next_lines,
    parse,
    random_prompt,
    trace,
)

OPERATIONS = {ast.Add: int.__add__, ast.Sub: int.__sub__, ast.Mult: int.__mul__}


def value(node: ast.expr) -> int:
    if isinstance(node, ast.BinOp):
        return OPERATIONS[type(node.op)](value(node.left), value(node.right))
    assert isinstance(node, ast.Constant)
    return node.value


def tree(line: str) -> ast.expr:
    return ast.parse(line, mode="eval").body


def reductions_by_python(line: str) -> list[str]:
    """Every reduction of an operation between two numbers, by where Python's parser puts it in the text."""
    found = []
    for node in ast.walk(tree(line)):
        if isinstance(node, ast.BinOp) and isinstance(node.left, ast.Constant) and isinstance(node.right, ast.Constant):
            start, stop = node.col_offset, node.end_col_offset
            while line[start - 1 : start] == "(" and line[stop : stop + 1] == ")":
                start, stop = start - 1, stop + 1
            found.append(f"{line[:start]}{value(node)}{line[stop:]}")
    return found


def all_prompts(count: int) -> list[str]:
    hardest = Random(3)
    extra = [random_prompt(hardest, Level(5, 3, True, LARGEST)) for _ in range(count)]
    return extra + [prompt for level in LEVELS for prompt in generate(0, level, count)]


def test_legal_reductions_are_those_of_pythons_parser():
    for prompt in all_prompts(150):
        for line in [parse(prompt), *trace(prompt)]:
            assert sorted(legal_next_lines(line)) == sorted(reductions_by_python(line)), line


def test_a_trace_is_legal_canonical_and_ends_in_the_value():
    for prompt in all_prompts(150):
        lines = [parse(prompt), *trace(prompt)]
        assert all(after == legal_next_lines(before)[0] for before, after in pairwise(lines))
        assert lines[-1] == str(value(tree(lines[0])))
        assert len(lines) - 1 == sum(lines[0].count(operator) for operator in "+-*")
        assert all(check(prompt, "\n".join(lines[1:])))


def test_no_text_of_a_right_solution_is_longer_than_promised():
    for prompt in ["99999-99999+99999-99999+99999*1=", "((((((9+9)+9)+9)*9)*9))=", *all_prompts(50)]:
        assert len(prompt) + len("\n".join(trace(prompt))) + 1 <= MAX_TEXT


def test_the_example():
    assert trace("47+6*(12-8)=") == ["47+6*4", "47+24", "71"]
    assert legal_next_lines("2*3+4*5") == ["6+4*5", "2*3+20"]
    assert check("2*3+4*5=", "2*3+20\n6+20\n26") == [True, True, True]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("47+6*4", "53*4"),  # precedence
        ("9-3-2", "9-1"),  # associativity
        ("9-3+2", "9-5"),
        ("2*(3+4)", "6+4"),  # parentheses
        ("2*(3+4)", "2*(7)"),
        ("2*3+4*5", "6+20"),  # two at once
        ("2+3", "6"),  # wrong
        ("2+3", "05"),
        ("2+3", "5 "),
        ("2+3", "2+3"),  # none
        ("2+3+0", "5"),
        ("3-5", "-2"),  # out of range
        ("99999+1", "100000"),
        ("7", "7"),
        ("2+3", ""),
    ],
)
def test_what_is_no_legal_reduction(before, after):
    assert not is_reduction(before, after)


def test_a_verdict_for_every_line():
    assert check("1+2+3=", "3+3\n6") == [True, True]
    assert check("1+2+3=", "3+3\n7") == [True, False]
    assert check("1+2+3=", "4+3\n7") == [False, True]
    assert check("1+2+3=", "3+3") == [False]  # stops early
    assert check("1+2+3=", "3+3\n6\n") == [True, False, False]  # goes on after the number
    assert check("1+2+3=", "") == [False]


@pytest.mark.parametrize(
    ("text", "number"), [("0", True), ("99999", True), ("100000", False), ("00", False), ("01", False), ("", False), ("-1", False), ("1+1", False)]
)
def test_numbers(text, number):
    assert is_number(text) == number


@pytest.mark.parametrize(
    ("prompt", "position", "reason"),
    [
        ("", 0, "the final '=' is missing"),
        ("1+2", 3, "the final '=' is missing"),
        ("1+2=3", 3, "'=' before the end"),
        ("=", 0, "a number or '\\(' is missing before '='"),
        ("1 + 2=", 1, "illegal character ' '"),
        ("1/2=", 1, "illegal character '/'"),
        ("1+2\n=", 3, "illegal character"),
        ("1+2\u0663=", 3, "illegal character"),
        ("(1+2=", 0, "unbalanced '\\('"),
        ("1+2)=", 3, "unbalanced '\\)'"),
        ("(1)+2=", 0, "parentheses around a lone number"),
        ("1+02=", 2, "leading zeros in 02"),
        ("1+=", 2, "a number or '\\(' is missing before '='"),
        ("-1+2=", 0, "a number or '\\(' is missing before '-'"),
        ("2(3+4)=", 1, "an operator is missing before '\\('"),
        ("7=", 0, "0 operations"),
        ("1+1+1+1+1+1+1=", 0, "6 operations"),
        ("4+(3-5)*2=", 3, "3-5 is -2, outside 0..99,999"),
        ("1+999*999=", 2, "999\\*999 is 998,001"),
        ("1+100000=", 2, "100000 is 100,000"),
        ("(((((((((((((((1+1)))))))))))))))=", 32, "too long: 33 characters"),
    ],
)
def test_a_bad_prompt_is_refused_and_told_where(prompt, position, reason):
    with pytest.raises(ValueError, match=f"position {position}: .*{reason}"):
        parse(prompt)


def test_generated_prompts_are_of_their_level():
    for number, level in LEVELS.items():
        for prompt in generate(5, number, 200):
            lines = [parse(prompt), *trace(prompt)]
            operands = [int(n) for n in re.findall("[0-9]+", lines[0])]
            values = [value(node) for node in ast.walk(tree(lines[0])) if isinstance(node, ast.BinOp)]
            assert len(trace(prompt)) == level.operations
            assert max(operands) < 10**level.digits
            assert level.reach <= max(values) <= level.largest
            assert min(values) >= 0
            assert level.parentheses or "(" not in prompt


def test_prompts_follow_the_seed():
    assert generate(1, 6, 50) == generate(1, 6, 50) != generate(2, 6, 50)
    assert generate(1, 6, 50)[:10] == generate(1, 6, 10)


def test_an_eighth_is_held_out():
    prompts = set(generate(0, 6, 4_000))
    # Binomial of 4,000 and 1/8: sd .0052, so that the interval is of five of them.
    assert abs(sum(map(is_held_out, prompts)) / len(prompts) - 1 / 8) < 0.026


def test_an_unknown_level_is_refused():
    with pytest.raises(ValueError, match="level must be one of 1, 2, 3, 4, 5, 6, got 7"):
        generate(0, 7, 1)
