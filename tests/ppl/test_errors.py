"""A mistake in a program is told with its site and the line of the user's code, in words that help."""

import re
import traceback

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import pytest

import posterity as po

NORMAL = dist.Normal(0.0, 1.0)


def told(program, error=Exception):
    """The whole message of what goes wrong, notes included."""
    with pytest.raises(error) as caught:
        po.importance(jax.random.key(0), program, n=2)
    return "".join(traceback.format_exception_only(caught.value))


def line_of(mark):
    """Where this file says so."""
    with open(__file__) as file:
        (number,) = [number for number, line in enumerate(file, 1) if line.rstrip().endswith(f"# {mark}")]
    return number


@po.program
def bad_arguments():
    po.sample("a", NORMAL)
    return po.sample("b", dist.Normal(jnp.zeros(2), jnp.ones(3)))  # bad arguments


def helper(x):
    return x + jnp.zeros(2) + jnp.zeros(3)  # bad helper


@po.program
def bad_step():
    def step(x, _):
        x = po.sample("x", dist.Normal(x, 1.0))
        return helper(x)

    return po.scan(step, 0.0, length=2)


@po.program
def bad_value(ys):
    def step(x, y):
        po.observe("y", dist.Normal(jnp.zeros(3), 1.0), y)  # bad value
        return po.sample("x", dist.Normal(x, 1.0))

    return po.scan(step, 0.0, ys)


@po.program
def bad_law():
    return po.sample("x", 0.5)  # bad law


@po.program
def bad_factor():
    po.factor("f", "much")  # bad factor


@pytest.mark.parametrize(
    ("program", "error", "site", "mark"),
    [
        (bad_arguments(), ValueError, "after site 'a'", "bad arguments"),
        (bad_step(), TypeError, "after site 'x'", "bad helper"),
        (
            bad_value(jnp.ones((4, 2))),
            TypeError,
            "the log density of site 'y', Normal of batch shape (3,) and event shape () at a value of shape",
            "bad value",
        ),
        (bad_law(), TypeError, "before its first site", "bad law"),
        (bad_factor(), TypeError, "the log density of site 'f'", "bad factor"),
    ],
    ids=lambda x: getattr(x, "name", None),
)
def test_an_error_names_program_site_and_line(program, error, site, mark):
    message = told(program, error)
    assert f"In program {program.name}, {site}" in message
    assert f'File "{__file__}", line {line_of(mark)}, in ' in message
    assert message.count("In program") == 1


@po.program
def outer():
    po.sample("z", NORMAL)
    return po.importance(jax.random.key(0), bad_step.bind(), n=2).log_evidence  # runs another


def test_an_error_in_a_program_that_a_program_runs_names_both_lines():
    message = told(outer())
    assert re.search(rf"In program bad_step, after site 'x':\n.*line {line_of('bad helper')}, in helper", message)
    assert re.search(rf"In program outer, after site 'z':\n.*line {line_of('runs another')}, in outer", message)


def scanning(step, init, **options):
    return po.program(lambda: po.scan(step, init, length=2, **options))()  # the scan


START = {"count": 0, "path": (jnp.zeros(3), 1.0)}

CARRIES = {
    "dtype": (
        lambda c, _: {**c, "count": c["count"] + 0.5},
        "carry['count'] was int32[] and came out of the step as float32[]; start it like jnp.zeros((), jnp.float32) (the float 0.0 rather than the int 0), "
        "or return it .astype(jnp.int32)\n",
    ),
    "shape": (
        lambda c, _: {**c, "path": (c["path"][0][:2], c["path"][1])},
        "carry['path'][0] was float32[3] and came out of the step as float32[2]; start it like jnp.zeros((2,), jnp.float32), or return it in its shape (3,)\n",
    ),
    "both": (
        lambda c, _: {"count": c["count"] * 1.0, "path": (c["path"][0][0], c["path"][1])},
        "carry['path'][0] was float32[3] and came out of the step as float32[]",
    ),
    "a new name": (lambda c, _: {"number": c["count"], "path": c["path"]}, "carry['count'] is missing and carry['number'] is new\n"),
    "a part less": (lambda c, _: {**c, "path": c["path"][:1]}, "carry['path'][1] is missing\n"),
    "another container": (
        lambda c, _: {**c, "path": list(c["path"])},
        "it was PyTreeDef({'count': *, 'path': (*, *)}) and came out as PyTreeDef({'count': *, 'path': [*, *]})\n",
    ),
    "nothing": (lambda c, _: None, "it returned None"),
    "the pair of lax.scan": (lambda c, _: (c, None), "it returned a pair whose first entry is one; unlike jax.lax.scan, po.scan takes the carry alone"),
}


@pytest.mark.parametrize("case", CARRIES)
def test_a_carry_that_changes_is_explained_leaf_by_leaf(case):
    step, explanation = CARRIES[case]
    message = told(scanning(step, START), TypeError)
    assert f"the step of po.scan (at test_errors.py:{line_of('the scan')}) must return a carry like the one it was given:\n  " in message
    assert f"\n  {explanation}" in message


@po.program
def twins_before():
    po.sample("x", NORMAL)  # first of two
    po.sample("x", NORMAL)  # second of two


@po.program
def twins_in_the_step():
    def step(x, _):
        po.observe("x", NORMAL, x)  # first in the step
        return po.sample("x", NORMAL)  # second in the step

    return po.scan(step, 0.0, length=2)


@po.program
def twins_across():
    x = po.sample("x", NORMAL)  # before the scan
    return po.scan(lambda x, _: po.sample("x", NORMAL), x, length=2)  # in its step


@po.program
def twins_after():
    x = po.scan(lambda x, _: po.sample("x", NORMAL), 0.0, length=2)  # the step
    po.factor("x", x)  # at the end


@pytest.mark.parametrize(
    ("program", "first", "second"),
    [
        (twins_before(), "first of two", "second of two"),
        (twins_in_the_step(), "first in the step", "second in the step"),
        (twins_across(), "before the scan", "in its step"),
        (twins_after(), "the step", "at the end"),
    ],
    ids=lambda x: getattr(x, "name", None),
)
def test_a_name_used_twice_is_told_with_both_lines(program, first, second):
    message = told(program, ValueError)
    assert f"{program.name}: two sites are called 'x', at test_errors.py:{line_of(first)} and at test_errors.py:{line_of(second)}" in message


def test_a_plate_may_be_entered_again_by_its_name():
    @po.program
    def rows():
        with numpyro.plate("rows", 3):
            x = po.sample("x", NORMAL)
        with numpyro.plate("rows", 3):
            return po.sample("y", dist.Normal(x, 1.0))

    assert po.importance(jax.random.key(0), rows(), n=2).values.shape == (2, 3)


def test_a_factor_of_many_entries_counts_by_its_sum():
    @po.program
    def many():
        po.factor("f", jnp.array([-1.0, -2.0]))
        return 0

    assert float(po.importance(jax.random.key(0), many(), n=2).log_evidence) == pytest.approx(-3)


def test_a_choice_outside_any_program_is_told_so():
    with pytest.raises(RuntimeError, match=r"sample\('x'\) stands outside any program: .* @po.program"):
        po.sample("x", NORMAL)
    assert po.sample("x", NORMAL, rng_key=jax.random.key(0)).shape == ()
    assert numpyro.handlers.seed(lambda: po.sample("x", NORMAL), 0)().shape == ()
