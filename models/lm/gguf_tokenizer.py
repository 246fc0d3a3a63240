"""Tokenizers as GGUF files hold them."""

import tokenizers
from gguf import TokenType as Kind
from tokenizers.pre_tokenizers import ByteLevel, Digits, PreTokenizer, Sequence, Split

from posterity.models.lm.gguf_metadata import Metadata
from posterity.models.lm.tokenizer import Tokenizer

# Special tokens that end a text whether a file says so or not, as llama.cpp has them.
ENDS = ("<|endoftext|>", "<|end_of_text|>", "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>")
SPACE = "\u2581"  # what SentencePiece writes for a space


def read_tokenizer(metadata: Metadata, vocab_size: int) -> Tokenizer:
    """The tokenizer of a file: byte-level BPE (GPT-2, Llama 3, Qwen, SmolLM) or SentencePiece's (Llama 2, Mistral, Gemma).

    Raises:
      ValueError: for other kinds of tokenizer, and for parts that do not fit together.
    """
    kind = metadata.text("tokenizer.ggml.model")
    if kind not in ("gpt2", "llama"):
        raise ValueError(f"{metadata.path}: tokenizer model {kind} is not supported; supported are gpt2 (byte-level BPE) and llama (SentencePiece)")
    tokens, kinds = metadata.many("tokenizer.ggml.tokens", str), metadata.many("tokenizer.ggml.token_type", int)
    if len(kinds) != len(tokens) or len(set(tokens)) != len(tokens):
        raise ValueError(f"{metadata.path}: {len(tokens)} tokens ({len(set(tokens))} of them distinct) with {len(kinds)} types")
    vocabulary = {token: i for i, token in enumerate(tokens) if kinds[i] != Kind.UNUSED}
    backend = _byte_level(metadata, vocabulary) if kind == "gpt2" else _sentencepiece(metadata, vocabulary, kinds)
    special = [token for token, i in vocabulary.items() if kinds[i] in (Kind.CONTROL, Kind.UNKNOWN)]
    backend.add_special_tokens([tokenizers.AddedToken(token, normalized=False, special=True) for token in special])
    defined = [token for token, i in vocabulary.items() if kinds[i] == Kind.USER_DEFINED]
    backend.add_tokens([tokenizers.AddedToken(token, normalized=SPACE in token, special=False) for token in defined])

    def token_of(key: str) -> str | None:
        i = metadata.whole(f"tokenizer.ggml.{key}", -1)
        if i >= len(tokens):
            raise ValueError(f"{metadata.path}: tokenizer.ggml.{key} = {i}, but there are {len(tokens)} tokens")
        return tokens[i] if i >= 0 else None

    bos, eos = token_of("bos_token_id"), token_of("eos_token_id")
    if bos is not None and metadata.flag("tokenizer.ggml.add_bos_token", kind == "llama" or metadata.text("tokenizer.ggml.pre", "") == "llama-bpe"):
        opening = {"single": f"{bos} $A", "pair": f"{bos} $A {bos} $B", "special_tokens": [(bos, vocabulary[bos])]}
        backend.post_processor = tokenizers.processors.TemplateProcessing(**opening)
    ends = {eos, token_of("eot_token_id"), token_of("eom_token_id"), *(token for token in special if token in ENDS)}
    try:
        return Tokenizer(
            backend,
            end_ids=[vocabulary[token] for token in ends if token in vocabulary],
            size=vocab_size,
            bos_token=bos,
            eos_token=eos,
            chat_template=metadata.text("tokenizer.chat_template", "") or None,
        )
    except ValueError as error:
        raise ValueError(f"{metadata.path}: {error}") from error


def _byte_level(metadata: Metadata, vocabulary: dict[str, int]) -> tokenizers.Tokenizer:
    """BPE over bytes, with merges in the order in which they were learnt."""
    style = metadata.text("tokenizer.ggml.pre", "none")
    if style not in PRE_TOKENIZERS:
        raise ValueError(f"{metadata.path}: pre-tokenizer {style} is not supported; supported are {', '.join(PRE_TOKENIZERS)}")
    merges = [tuple(merge.split(" ")) for merge in metadata.many("tokenizer.ggml.merges", str)]
    try:
        backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, merges, ignore_merges=style == "llama-bpe"))
    except Exception as error:  # the Rust library raises bare exceptions
        raise ValueError(f"{metadata.path}: tokenizer.ggml.tokens and merges do not fit together ({error})") from error
    backend.pre_tokenizer = PRE_TOKENIZERS[style]
    backend.decoder = tokenizers.decoders.ByteLevel()
    if style == "qwen2":
        backend.normalizer = tokenizers.normalizers.NFC()
    return backend


def _sentencepiece(metadata: Metadata, vocabulary: dict[str, int], kinds: list[int]) -> tokenizers.Tokenizer:
    """BPE over characters, of which the pair whose piece scores highest is joined first (Kudo and Richardson 2018); unknown characters are spelled in bytes."""
    scores = metadata.many("tokenizer.ggml.scores", float)
    if len(scores) != len(kinds):
        raise ValueError(f"{metadata.path}: {len(kinds)} tokens with {len(scores)} scores")
    unknown = next((token for token, i in vocabulary.items() if kinds[i] == Kind.UNKNOWN), None)
    pieces = {token: scores[i] for token, i in vocabulary.items() if kinds[i] == Kind.NORMAL}
    merges = []
    for piece in sorted(pieces, key=pieces.__getitem__, reverse=True):
        merges += [(piece[:cut], piece[cut:]) for cut in range(1, len(piece)) if piece[:cut] in pieces and piece[cut:] in pieces]
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    opened = metadata.flag("tokenizer.ggml.add_space_prefix", True)
    replace = tokenizers.normalizers.Replace(" ", SPACE)
    backend.normalizer = tokenizers.normalizers.Sequence([tokenizers.normalizers.Prepend(SPACE), replace]) if opened else replace
    decoders = [tokenizers.decoders.Replace(SPACE, " "), tokenizers.decoders.ByteFallback(), tokenizers.decoders.Fuse()]
    backend.decoder = tokenizers.decoders.Sequence([*decoders, tokenizers.decoders.Strip(" ", 1, 0)] if opened else decoders)
    return backend


def _split(pattern: str) -> PreTokenizer:
    return Sequence([Split(tokenizers.Regex(pattern), "isolated"), ByteLevel(add_prefix_space=False, use_regex=False)])


_CONTRACTION, _WORD = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)", r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# How each family cuts a text into the words within which merges happen, by the name that llama.cpp has for it.
PRE_TOKENIZERS = {
    "gpt-2": ByteLevel(add_prefix_space=False),
    "smollm": Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]),
    "llama-bpe": _split(rf"{_CONTRACTION}|{_WORD}|\p{{N}}{{1,3}}|{_REST}"),
    "qwen2": _split(rf"{_CONTRACTION}|{_WORD}|\p{{N}}|{_REST}"),
}
