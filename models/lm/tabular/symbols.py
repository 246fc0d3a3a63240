"""The tokens of tabular models: symbols that the user names, an end and a start."""

from collections.abc import Sequence

import numpy as np
import tokenizers
from tokenizers import AddedToken, Regex, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import WordLevel

from posterity.models.lm.tokenizer import Tokenizer

END, START = "<end>", "<start>"
SUM_TOLERANCE = 1e-6  # by which given probabilities may miss one, as decimal fractions do; they are then divided by their sum


def tokenizer_of(symbols: Sequence[str], *, spaced: bool) -> Tokenizer:
    """A tokenizer with one token a symbol, in their order, then the end, then the start, with which every text begins.

    Texts are written with spaces between symbols when `spaced` (a token then writes the space before its word), and without
    otherwise. White space in a spaced text separates words, however much of it.

    Raises:
      ValueError: for symbols that are empty, repeated, hold white space (when spaced) or are called as the end or the start.

    >>> words = tokenizer_of(["the", "dog", "barks"], spaced=True)
    >>> words.encode("the dog"), words.decode([0, 1, 2])
    ([4, 0, 1], 'the dog barks')
    """
    for symbol in symbols:
        if not isinstance(symbol, str) or not symbol or symbol in (END, START) or (spaced and symbol.split() != [symbol]):
            told = f"without white space and other than {END} and {START}" if spaced else f"other than {END} and {START}"
            raise ValueError(f"symbols must be texts of at least one character, {told}; got {symbol!r}")
    if repeated := sorted({symbol for symbol in symbols if list(symbols).count(symbol) > 1}) if len(set(symbols)) < len(symbols) else []:
        raise ValueError(f"symbols must differ from each other; {', '.join(map(repr, repeated))} come more than once")
    written = [f"▁{symbol}" for symbol in symbols] if spaced else symbols
    backend = tokenizers.Tokenizer(WordLevel({symbol: i for i, symbol in enumerate(written)}, unk_token=""))
    if spaced:
        backend.normalizer = normalizers.Sequence([normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()])
        backend.pre_tokenizer = pre_tokenizers.Metaspace()
        backend.decoder = decoders.Metaspace()
    else:
        backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
        backend.decoder = decoders.Fuse()
    backend.add_special_tokens([AddedToken(END, special=True, normalized=False), AddedToken(START, special=True, normalized=False)])
    backend.post_processor = processors.TemplateProcessing(single=f"{START} $A", special_tokens=[(START, len(symbols) + 1)])
    return Tokenizer(backend, end_ids=(len(symbols),), bos_token=START, eos_token=END)


def are_spaced(symbols: Sequence[str]) -> bool:
    """Whether texts need spaces: some symbol is longer than one character."""
    return any(len(symbol) > 1 for symbol in symbols)


def checked_rows(name: str, given: object, shape: tuple[int, ...]) -> np.ndarray:
    """Probabilities whose last axis sums to one, float64.

    Raises:
      ValueError: for another shape, a number outside [0, 1], or a sum that is not one.
    """
    rows = np.asarray(given, float)
    if rows.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {rows.shape}")
    if not np.all((rows >= 0) & (rows <= 1)):
        raise ValueError(f"{name} must hold probabilities, got {rows[~((rows >= 0) & (rows <= 1))][0]}")
    sums = rows.sum(axis=-1)
    if np.any(np.abs(sums - 1) > SUM_TOLERANCE):
        at = np.unravel_index(np.argmax(np.abs(sums - 1)), sums.shape)
        where = f"row {int(at[0])} sums" if at else "it sums"
        raise ValueError(f"{name} must sum to one along its last axis; {where} to {float(sums[at]):.6g}")
    return rows / sums[..., None]


def log(x: np.ndarray) -> np.ndarray:
    """Natural logarithm; -inf of zero."""
    with np.errstate(divide="ignore"):
        return np.log(x)
