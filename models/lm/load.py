"""Language models by name: the embedded ones, GGUF files, Hugging Face directories."""

from importlib import resources
from pathlib import Path

from posterity.models import weights
from posterity.models.lm import gguf_file, huggingface
from posterity.models.lm.language_model import LanguageModel


def last_line(text: str) -> str:
    """The answer of a model that works line by line."""
    return text.rstrip("\n").rpartition("\n")[2]


EMBEDDED = {"abacus": last_line}  # directories of posterity.models.weights, and how the answer is read from a text
FORMATS = {"gguf": gguf_file.load, "hf": huggingface.load}


def load(spec: str) -> LanguageModel:
    """The language model that `spec` names: `"abacus"`, `"gguf:PATH"` or `"hf:DIRECTORY"`, its weights in float32.

    Raises:
      FileNotFoundError: when there is no such file or directory.
      ValueError: for an unknown name (with the known ones), and for files that cannot be used; see `gguf_file.load` and
        `huggingface.load`.

    >>> load("abacus").name
    'abacus'
    """
    if spec in EMBEDDED:
        with resources.as_file(resources.files(weights) / spec) as directory:
            return LanguageModel.of(*huggingface.load(directory), name=spec, extract=EMBEDDED[spec])
    kind, _, place = str(spec).partition(":")
    if kind not in FORMATS or not place:
        known = ", ".join(repr(name) for name in (*EMBEDDED, "gguf:PATH", "hf:DIRECTORY"))
        raise ValueError(f"load: no language model is called {spec!r}; known are {known}")
    return LanguageModel.of(*FORMATS[kind](Path(place).expanduser()), name=spec)
