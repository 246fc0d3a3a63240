"""The tokenizer: ids, bytes, the tokens that end a text, and equality by content."""

import pytest
import tokenizers

from posterity.models.lm.tokenizer import Tokenizer
from posterity.tests.fixtures.tiny_llama import TEMPLATE, bpe, vocabulary


def characters(alphabet: str = "0123456789+-*()=\n") -> tokenizers.Tokenizer:
    """One token a character, and an end token."""
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({c: i for i, c in enumerate(alphabet)}, unk_token=""))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex(r"[\s\S]"), "isolated")
    backend.decoder = tokenizers.decoders.Fuse()
    backend.add_special_tokens([tokenizers.AddedToken("<end>", special=True, normalized=False)])
    return backend


def with_byte_fallback() -> tokenizers.Tokenizer:
    """A tokenizer of the kind that SentencePiece models become: spaces are written as ▁, unknown characters as bytes."""
    tokens = ["<s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "h", "i", "▁h", "▁hi"]
    model = tokenizers.models.BPE({token: i for i, token in enumerate(tokens)}, [("▁", "h"), ("▁h", "i")], byte_fallback=True)
    backend = tokenizers.Tokenizer(model)
    decoders = tokenizers.decoders
    backend.normalizer = tokenizers.normalizers.Replace(" ", "▁")
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.add_special_tokens([tokenizers.AddedToken("<s>", special=True, normalized=False)])
    return backend


def test_a_character_level_tokenizer_has_one_token_a_character_line_breaks_included():
    tokenizer = Tokenizer(characters(), end_ids=(17,))
    assert tokenizer.encode("47+6*4\n47+24\n71<end>") == [4, 7, 10, 6, 12, 4, 16, 4, 7, 10, 2, 4, 16, 7, 1, 17]
    assert tokenizer.decode([7, 1, 16, 17]) == "71\n"
    assert tokenizer.token_bytes == (*(c.encode() for c in "0123456789+-*()=\n"), b"")
    assert (tokenizer.vocab_size, tokenizer.end_ids, tokenizer.special_ids) == (18, (17,), {17})


def test_characters_outside_the_alphabet_are_named():
    with pytest.raises(ValueError, match=r"no token for 'é/' in '1\+é/é=\?*'; its characters are '\\n\(\)\*\+-0123456789='"):
        Tokenizer(characters()).encode("1+é/é=")


@pytest.mark.parametrize("backend", [bpe(), with_byte_fallback(), characters("hi é🙂")], ids=["byte-level", "byte-fallback", "characters"])
@pytest.mark.parametrize("text", [" hi", "hi hi", "é hi 🙂"])
def test_the_bytes_of_the_tokens_are_the_bytes_of_the_text(backend, text):
    tokenizer = Tokenizer(backend)
    ids = tokenizer.encode(text)
    assert b"".join(tokenizer.token_bytes[i] for i in ids) == text.encode()
    assert tokenizer.decode(ids) == text


def test_every_byte_has_its_token_in_a_byte_level_vocabulary():
    tokenizer = Tokenizer(bpe())
    assert {bytes([byte]) for byte in range(256)} <= set(tokenizer.token_bytes)
    assert tokenizer.token_bytes[vocabulary().index("Ġw")] == b" w"


def test_a_larger_model_has_ids_without_tokens():
    tokenizer = Tokenizer(characters(), size=32)
    assert tokenizer.vocab_size == len(tokenizer.token_bytes) == 32
    assert tokenizer.token_bytes[20] == b""
    assert tokenizer.decode([1, 20, 2]) == "12"


@pytest.mark.parametrize(
    ("options", "reason"),
    [({"size": 10}, "18 tokens, more than the model's vocabulary of 10"), ({"end_ids": (18,)}, r"end_ids must lie in 0..17, got \[18\]")],
)
def test_sizes_that_do_not_fit_are_refused(options, reason):
    with pytest.raises(ValueError, match=reason):
        Tokenizer(characters(), **options)


def test_special_tokens_in_a_text_are_recognised_and_not_decoded():
    tokenizer = Tokenizer(bpe())
    assert tokenizer.encode("<|im_start|>hello<|im_end|>") == [1, vocabulary().index("hello"), 2]
    assert tokenizer.decode(tokenizer.encode("<|im_start|>hello<|im_end|>")) == "hello"


def test_tokenizers_are_equal_by_content():
    one, same = Tokenizer(characters(), end_ids=(17,)), Tokenizer(characters(), end_ids=(17,))
    assert one == same
    assert hash(one) == hash(same)
    others = [
        Tokenizer(characters(), end_ids=(16,)),
        Tokenizer(characters(), end_ids=(17,), size=20),
        Tokenizer(characters(), end_ids=(17,), chat_template="x"),
        Tokenizer(characters("+-*()=\n0123456789"), end_ids=(17,)),
    ]
    assert all(one != other for other in others)
    assert one != "a tokenizer"


def test_a_conversation_needs_a_chat_template():
    messages = [{"role": "user", "content": "hello"}]
    assert Tokenizer(bpe(), chat_template=TEMPLATE).chat(messages) == "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    assert Tokenizer(bpe(), chat_template="{{ bos_token }}|{{ eos_token }}", bos_token="<|im_start|>").chat(messages) == "<|im_start|>|"
    with pytest.raises(ValueError, match="no chat template"):
        Tokenizer(bpe()).chat(messages)
