"""What the README shows is what happens."""

import re
from pathlib import Path

import jax.numpy as jnp
import pytest

import posterity

ROOT = Path(posterity.__file__).parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_first_program_runs_and_gives_what_its_comment_says():
    names = {}
    exec(BLOCKS[0], names)
    posterior = names["posterior"]
    log_evidence, ess, mean = (float(x) for x in re.search(r"# (-[0-9.]+), ([0-9.]+), ([0-9.]+)\n", BLOCKS[0]).groups())
    # Random numbers differ between versions of JAX: five standard errors (false alarm: 1e-6).
    assert float(posterior.log_evidence) == pytest.approx(log_evidence, abs=5 * float(posterior.log_evidence_error))
    assert float(posterior.expect()) == pytest.approx(mean, abs=5 * posterior.estimate().error)
    assert float(posterior.ess) == pytest.approx(ess, rel=0.2)


def test_the_exact_answers_are_what_the_comments_say():
    names = {}
    exec(BLOCKS[0].split("@po.program")[0], names)
    exec(BLOCKS[1], names)
    told = {int(answer): float(p) for answer, p in re.findall(r"([01]): (0\.[0-9]+)", BLOCKS[1])}
    assert {answer: p for answer, (p, _) in names["answers"].items()} == pytest.approx(told, abs=1e-4)
    assert BLOCKS[1].split("# ")[-1].split(", largest")[0] == str(names["report"]).split(", largest")[0]


def test_the_program_with_a_language_model_runs_with_another(random_model):
    names = {}
    exec(BLOCKS[0].split("@po.program")[0], names)
    program = BLOCKS[2].replace("gguf:SmolLM2-135M-Instruct.Q4_1.gguf", random_model).replace("Once upon a time", "1+2=").replace('"e"', '"7"')
    exec(program.replace("n=32", "n=8"), names)
    assert jnp.isfinite(names["posterior"].log_evidence)
    assert all("7" not in answer for answer in names["posterior"].answers())


def test_every_link_leads_somewhere():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert [link for link in links if "//" not in link and not (ROOT / link).exists()] == []
