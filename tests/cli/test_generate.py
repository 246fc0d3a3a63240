"""`posterity generate`."""

import json

import pytest

from posterity.tests.fixtures.tiny_llama import Shape, random_tensors, write_gguf


@pytest.fixture(scope="module")
def gguf_model(tmp_path_factory) -> str:
    """A random model of bytes, with a chat template, in a GGUF file."""
    return f"gguf:{write_gguf(tmp_path_factory.mktemp('gguf') / 'tiny.gguf', random_tensors(Shape()), Shape())}"


def test_json_is_one_object_with_n_texts_of_at_most_so_many_tokens(posterity, gguf_model):
    result = posterity("generate", "hello", "--model", gguf_model, "--n", 4, "--max-tokens", 5, "--json")
    assert (result.code, result.err) == (0, "")
    said = json.loads(result.out)
    assert list(said) == ["texts", "tokens_per_second", "seed", "versions"]
    assert len(said["texts"]) == 4
    for text in said["texts"]:
        assert list(text) == ["text", "tokens", "ended"]
        assert 1 <= text["tokens"] <= 5
        assert text["ended"] or text["tokens"] == 5
    assert said["tokens_per_second"] > 0


def test_a_seed_decides_the_texts(posterity, random_model):
    def texts(seed):
        return json.loads(posterity("generate", "1+2=", "--model", random_model, "--n", 6, "--max-tokens", 12, "--seed", seed, "--json").out)["texts"]

    assert texts(1) == texts(1) != texts(2)


def test_a_stop_text_ends_a_text_and_is_left_out(posterity, random_model):
    options = ("--model", random_model, "--max-tokens", 40, "--n", 32, "--stop", "1")
    texts = json.loads(posterity("generate", "1+2=", *options, "--json").out)["texts"]
    assert all("1" not in text["text"] for text in texts)
    assert sum(text["ended"] for text in texts) > 16
    assert any(len(text["text"]) + 1 == text["tokens"] for text in texts)


def test_chat_puts_the_prompt_into_the_template(posterity, gguf_model):
    def texts(prompt, *options):
        return json.loads(posterity("generate", prompt, *options, "--model", gguf_model, "--n", 4, "--max-tokens", 5, "--json").out)["texts"]

    spelled_out = "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    assert texts("hello", "--chat") == texts(spelled_out) != texts("hello")


@pytest.mark.parametrize("option", [("--top-k", 1), ("--top-p", 0.001), ("--min-p", 1)])
def test_options_that_keep_one_token_make_all_texts_alike(posterity, random_model, option):
    result = posterity("generate", "1+2=", "--model", random_model, "--n", 6, "--max-tokens", 12, *option, "--json")
    assert len({text["text"] for text in json.loads(result.out)["texts"]}) == 1


def test_the_page_shows_every_different_text_once_after_the_prompt(posterity, random_model):
    result = posterity("generate", "1+2=", "--model", random_model, "--n", 6, "--max-tokens", 12, "--temperature", 0.001)
    assert (result.code, result.err) == (0, "")
    assert result.out.count("1+2=") == 1
    assert "6 of 6 alike" in result.out
    assert "tokens/s" in result.out
