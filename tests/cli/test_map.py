"""`posterity map`: votes are counted as they are on paper, and a small map is drawn."""

import json
from types import SimpleNamespace

import jax.numpy as jnp
import pytest

from posterity.cli import map as maps


def found(lines, scores):
    """What a strategy gives, as far as rules look at it; a line of zeros is right."""
    lines = jnp.array(lines)
    right = (lines == 0).all(axis=-1)
    return SimpleNamespace(values=SimpleNamespace(lines=lines, right=right), scores=jnp.array(scores), log_weights=jnp.log(jnp.array(scores)))


RIGHT, WRONG, OTHER = [0, 0, 0, 0, 0], [0, 1, 0, 0, 0], [0, 0, 2, 0, 0]


def test_votes_and_bests_are_counted_as_on_paper():
    one = found([RIGHT, WRONG, WRONG, OTHER], [0.5, 0.3, 0.3, 0.4])
    assert float(maps.best(one, 4)) == 1.0
    assert float(maps.voted(one, 4)) == 0.0
    assert float(maps.voted(one, 2)) == float(maps.mode(one, 2)) == 1.0


def test_ties_share():
    one = found([RIGHT, WRONG, OTHER, OTHER], [0.4, 0.4, 0.2, 0.2])
    assert float(maps.best(one, 4)) == pytest.approx(1 / 2)
    assert float(maps.voted(one, 4)) == pytest.approx(1 / 3)


@pytest.mark.slow
def test_a_small_map_is_drawn(posterity, tmp_path):
    result = posterity("map", "--out", tmp_path, "--solved", "0.2", "--noises", "0,2", "--budgets", "4", "--problems", 12, "--json")
    assert (result.code, result.err) == (0, "")
    said = json.loads(result.out)
    assert {(cell["rival"], cell["noise"]) for cell in said["cells"]} == {
        (name, noise) for name in ("best of n", "beam search", "DVTS") for noise in (0.0, 2.0)
    }
    noiseless = [cell["filter"] for cell in said["cells"] if cell["noise"] == 0]
    assert all(accuracy > 0.2 for accuracy in noiseless)
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")
    assert len((tmp_path / "map.csv").read_text().splitlines()) == 7


@pytest.mark.parametrize(
    ("options", "said"), [(("--solved", "1"), "nothing to go wrong"), (("--noises", "-1"), "below 0"), (("--budgets", "0"), "not a whole number")]
)
def test_bad_options_are_named(posterity, tmp_path, options, said):
    result = posterity("map", *options, "--out", tmp_path)
    assert result.code == 2
    assert said in " ".join(result.err.split())
