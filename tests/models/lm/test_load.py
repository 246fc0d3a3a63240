"""Language models by name."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from posterity.models.lm.load import last_line, load
from posterity.tests.fixtures.tiny_llama import Shape, random_tensors, write_gguf, write_huggingface


@pytest.mark.parametrize("spec", ["abaca", "abacus:", "gguf", "gguf:", "onnx:model", "", "/some/path"])
def test_an_unknown_name_is_refused_with_the_known_ones(spec):
    with pytest.raises(ValueError, match=r"no model is called '.*'; known are 'abacus', 'abacus-prm', 'gguf:PATH', 'hf:DIRECTORY', 'hub:OWNER/NAME'"):
        load(spec)


@pytest.mark.parametrize("spec", ["gguf:missing.gguf", "hf:missing"])
def test_a_file_that_is_not_there_is_named(spec):
    with pytest.raises(FileNotFoundError, match="missing"):
        load(spec)


def test_both_formats_of_one_model_are_one_model(tmp_path):
    tensors = random_tensors(Shape())
    one = load(f"gguf:{write_gguf(tmp_path / 'tiny.gguf', tensors, Shape())}")
    other = load(f"hf:{write_huggingface(tmp_path / 'tiny', tensors, Shape())}")
    assert one.parameters == other.parameters == sum(x.size for x in tensors.values())
    assert one.name == f"gguf:{tmp_path / 'tiny.gguf'}"
    assert one.tokenizer.encode("hello world") == other.tokenizer.encode("hello world")


def test_abacus_ships_with_the_package():
    lm = load("abacus")
    assert lm.name == "abacus"
    assert 400_000 < lm.parameters < 1_600_000
    assert lm.tokenizer.encode("47+6*(12-8)=") == [lm.tokenizer.encode(c)[0] for c in "47+6*(12-8)="]
    assert len(lm.tokenizer.end_ids) == 1


def test_weights_may_be_held_in_bfloat16(tmp_path):
    for spec in ("abacus", f"gguf:{write_gguf(tmp_path / 'tiny.gguf', random_tensors(Shape()), Shape())}"):
        lm = load(spec, dtype="bfloat16")
        assert {leaf.dtype for leaf in jax.tree.leaves(lm.weights)} == {jnp.dtype("bfloat16")}
        assert lm.parameters == load(spec).parameters
    with pytest.raises(ValueError, match="dtype must be one of 'float32', 'bfloat16', got 'float64'"):
        load("abacus", dtype="float64")


def test_the_answer_of_a_text_of_lines_is_its_last():
    assert [last_line(text) for text in ("47+24\n71", "71", "71\n", "")] == ["71", "71", "71", ""]


def test_loading_is_never_a_network_call(tmp_path):
    """In a process whose sockets cannot connect, everything imports and a model loads."""
    spec = f"hf:{write_huggingface(tmp_path / 'tiny', random_tensors(Shape()), Shape())}"
    script = f"""
import socket, sys
def refuse(*_): raise OSError("no network")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
from posterity.models.lm.load import load
load({spec!r})
assert "huggingface_hub" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=300)
