"""What the command does with arguments, good and bad, before anything is computed, and with readers that go away."""

import os
import subprocess
import sys

import pytest

import posterity as po
from posterity.cli import app

EXPRESSION = "48*(7+5)-19="
BAD = [
    (["solve"], ["PROMPT"]),
    (["solve", ""], ["PROMPT", "''"]),
    (["solve", "48*(7+5"], ["PROMPT", "'48*(7+5'", "="]),
    (["solve", "48*(7+5="], ["PROMPT", "'48*(7+5='", "'('"]),
    (["solve", "two+2="], ["PROMPT", "'t'", "digits"]),
    (["solve", "1+" * 20 + "1="], ["PROMPT", "too long", "at most 32"]),
    (["solve", EXPRESSION, "--n", "0"], ["--n", "'0'", "from 1"]),
    (["solve", EXPRESSION, "--n", "-3"], ["--n", "'-3'", "from 1"]),
    (["solve", EXPRESSION, "--n", "many"], ["--n", "'many'", "whole number"]),
    (["solve", EXPRESSION, "--seed", "4294967296"], ["--seed", "'4294967296'", "4294967295"]),
    (["solve", EXPRESSION, "--temperature", "0"], ["--temperature", "'0'", "above 0"]),
    (["solve", EXPRESSION, "--temperature", "nan"], ["--temperature", "'nan'", "above 0"]),
    (["solve", EXPRESSION, "--temperature", "hot"], ["--temperature", "'hot'", "above 0"]),
    (["generate", "x", "--top-k", "0"], ["--top-k", "'0'", "from 1"]),
    (["generate", "x", "--top-p", "0"], ["--top-p", "'0'", "above 0"]),
    (["solve", EXPRESSION, "--top-p", "1.5"], ["--top-p", "'1.5'", "from 0 to 1"]),
    (["generate", "x", "--min-p", "some"], ["--min-p", "'some'", "from 0 to 1"]),
    (["solve", EXPRESSION, "--potential", "words"], ["--potential", "'words'", "'lines', 'none'"]),
    (["solve", EXPRESSION, "--method", "beam"], ["--method", "'beam'", "'smc', 'importance'"]),
    (["solve", EXPRESSION, "--model", "abakus"], ["--model", "'abakus'", "'abacus'", "'gguf:PATH', 'hf:DIRECTORY'"]),
    (["solve", EXPRESSION, "--model", "gguf:no/such.gguf"], ["--model", "no/such.gguf", "no such file"]),
    (["solve", EXPRESSION, "--model", "hf:no/such"], ["--model", "no/such"]),
    (["solve", EXPRESSION, "--modle", "abacus"], ["--modle", "--model"]),
    (["generate", "x", "--max-tokens", "0"], ["--max-tokens", "'0'", "from 1"]),
    (["generate", "x", "--stop", ""], ["--stop", "empty"]),
    (["solv", EXPRESSION], ["'solv'"]),
]


@pytest.mark.parametrize(("arguments", "said"), BAD, ids=[" ".join(arguments) for arguments, _ in BAD])
def test_a_bad_argument_is_refused_in_two_lines_that_name_it(posterity, arguments, said):
    result = posterity(*arguments)
    assert (result.code, result.out) == (2, "")
    message, hint = result.err.splitlines()
    assert [part for part in said if part not in message] == []
    assert hint.startswith("Try 'posterity")
    assert hint.endswith("--help'.")


@pytest.mark.parametrize("prompt", ["", "1+1" * 40, "1 + 1"])
def test_a_prompt_that_the_model_cannot_take_is_refused(posterity, random_model, prompt):
    result = posterity("generate", prompt, "--model", random_model, "--max-tokens", 4)
    assert (result.code, result.out) == (2, "")
    assert "'PROMPT'" in result.err
    assert len(result.err.splitlines()) == 2


@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGUF" + bytes(100), b"PK\3\4" + bytes(100)])
def test_a_corrupt_gguf_file_is_refused_by_name(posterity, tmp_path, content):
    path = tmp_path / "broken.gguf"
    path.write_bytes(content)
    result = posterity("generate", "x", "--model", f"gguf:{path}")
    assert (result.code, result.out) == (2, "")
    assert "'--model'" in result.err
    assert str(path) in result.err
    assert len(result.err.splitlines()) == 2


def test_chat_needs_a_model_with_a_template(posterity, random_model):
    result = posterity("generate", "Hello", "--chat", "--model", random_model)
    assert result.code == 2
    assert "'--chat'" in result.err
    assert "no chat template" in result.err


def test_version_is_the_package_s(posterity):
    assert posterity("--version") == (0, f"posterity {po.__version__}\n", "")


def test_alone_it_shows_its_help(posterity):
    alone = posterity()
    assert alone == posterity("--help")
    assert alone.code == 0
    assert all(command in alone.out for command in ("demo", "solve", "generate"))


@pytest.mark.parametrize("command", ["demo", "solve", "generate"])
def test_every_command_explains_itself(posterity, command):
    result = posterity(command, "--help")
    assert (result.code, result.err) == (0, "")
    assert f"posterity {command}" in result.out


def test_help_and_refusals_come_without_jax():
    script = "import sys; from posterity.cli.app import main; main(['--help']); main(['solve', '1+1=', '--n', '0']); print('jax' in sys.modules)"
    output = subprocess.check_output([sys.executable, "-c", script], text=True, stderr=subprocess.PIPE)
    assert output.splitlines()[-1] == "False"


def test_every_public_name_is_found_when_it_is_first_used():
    found = {name: getattr(po, name).__name__.rpartition(".")[2] for name in po.__all__}
    assert found == {name: name for name in po.__all__}
    with pytest.raises(AttributeError, match="'smcc'"):
        po.smcc  # noqa: B018


@pytest.mark.parametrize("arguments", [["--version"], ["--help"]])
def test_python_m_posterity_is_the_command_and_a_reader_that_goes_away_gets_no_traceback(posterity, arguments):
    command = [sys.executable, "-m", "posterity", *arguments]
    assert subprocess.run(command, capture_output=True, text=True, env={**os.environ, "COLUMNS": "80"}).stdout == posterity(*arguments).out
    closed = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    closed.stdout.close()
    assert closed.stderr.read() == b""
    assert closed.wait() == 1


def test_an_interruption_ends_with_a_word_and_the_shells_exit_code(posterity, monkeypatch):
    class Left(BaseException):
        pass

    def leave(code):
        raise Left(code)

    def interrupted(name, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "_exit", leave)
    monkeypatch.setattr("posterity.cli.running.load_model", interrupted)
    with pytest.raises(Left) as left:
        app.main(["solve", EXPRESSION])
    assert left.value.args == (130,)
