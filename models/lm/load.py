"""Models by name: the embedded ones and the reward model, GGUF files, Hugging Face directories, models of the hub, models behind a server."""

from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any, Literal, overload

from posterity.models import weights
from posterity.models.lm import gguf_file, hub, huggingface
from posterity.models.lm.heads import Classifier
from posterity.models.lm.language_model import LanguageModel
from posterity.models.lm.remote.client import Remote, connect
from posterity.models.lm.tokenizer import Tokenizer
from posterity.models.potentials.reward import RewardModel


def last_line(text: str) -> str:
    """The answer of a model that works line by line."""
    return text.rstrip("\n").rpartition("\n")[2]


REWARDS = ("abacus-prm",)  # directories too
EMBEDDED = {"abacus": last_line}  # directories of posterity.models.weights, and how the answer is read from a text
FORMATS: dict[str, Callable[[str, str], tuple[Any, Tokenizer]]] = {
    "gguf": lambda place, dtype: gguf_file.load(Path(place).expanduser(), dtype),
    "hf": lambda place, dtype: huggingface.load(Path(place).expanduser(), dtype),
    "hub": lambda place, dtype: huggingface.load(hub.directory(place), dtype),
}
KNOWN = ("gguf:PATH", "hf:DIRECTORY", "hub:OWNER/NAME")
SERVED = "openai:URL"


@overload
def load(spec: Literal["abacus-prm"], *, dtype: str = "float32") -> RewardModel: ...
@overload
def load(spec: str, *, dtype: str = "float32") -> LanguageModel: ...
@overload
def load(spec: str, *, model: str | None, **options: Any) -> Remote: ...
def load(spec: str, *, dtype: str | None = None, **options: Any) -> Any:
    """The language model that `spec` names: `"abacus"`, `"gguf:PATH"`, `"hf:DIRECTORY"` or `"hub:OWNER/NAME"` (also `"hub:OWNER/NAME@REVISION"`).

    `"abacus-prm"` is no language model but the reward of Abacus' steps, for `po.reason(lm, prompt, reward=...)`: a `RewardModel`.
    Weights are held, and computed with, in `dtype`: "float32" (as without it) or "bfloat16".
    `"openai:URL"` is a model behind a server, a `remote.Remote`, with the `options` of `remote.connect` (model, key, log, budget, ...) in place of
    `dtype`; it needs the extra `remote`.

    Raises:
      FileNotFoundError: when there is no such file, directory or model.
      ImportError: for a model of the hub without the extra `hub`, or one behind a server without `remote`.
      TypeError: for an option that this kind of model does not have.
      ValueError: for an unknown name or type (with the known ones), and for files that cannot be used; see `gguf_file.load`,
        `huggingface.load`, `hub.directory` and `remote.connect`, which says what else it raises.

    >>> load("abacus").name
    'abacus'
    >>> load("abacus-prm").classifier.labels
    ('right',)
    """
    kind, _, place = str(spec).partition(":")
    if kind == "openai" and place:
        if dtype is not None:
            raise TypeError(f"load: {spec} is computed by its server; it has no dtype")
        return connect(place, **options)
    if options:
        raise TypeError(f"load: {', '.join(options)}: for models behind a server, 'openai:URL', not for {spec!r}")
    dtype = "float32" if dtype is None else dtype
    if spec in EMBEDDED:
        with resources.as_file(resources.files(weights) / spec) as directory:
            return LanguageModel.of(*huggingface.load(directory, dtype), name=spec, extract=EMBEDDED[spec])
    if spec in REWARDS:
        with resources.as_file(resources.files(weights) / spec) as directory:
            return RewardModel(Classifier.of(*huggingface.load(directory, dtype), name=spec))
    model, tokenizer = _read("load", spec, dtype, (*EMBEDDED, *REWARDS), (SERVED,))
    if getattr(model.config, "labels", ()):
        raise ValueError(f"load: {spec} is a classifier, not a language model; use load_classifier")
    return LanguageModel.of(model, tokenizer, name=spec)


def load_classifier(spec: str, *, dtype: str = "float32") -> Classifier:
    """The classifier, such as a reward model, that `spec` names: `"hf:DIRECTORY"` or `"hub:OWNER/NAME"`.

    Raises:
      FileNotFoundError, ImportError, ValueError: as `load`, and for a language model.
    """
    model, tokenizer = _read("load_classifier", spec, dtype, ())
    if not getattr(model.config, "labels", ()):
        raise ValueError(f"load_classifier: {spec} is a language model, not a classifier; use load")
    return Classifier.of(model, tokenizer, name=spec)


def _read(caller: str, spec: str, dtype: str, embedded: tuple[str, ...], others: tuple[str, ...] = ()) -> tuple[Any, Tokenizer]:
    kind, _, place = str(spec).partition(":")
    if kind not in FORMATS or not place:
        known = ", ".join(repr(name) for name in (*embedded, *KNOWN, *others))
        raise ValueError(f"{caller}: no model is called {spec!r}; known are {known}")
    return FORMATS[kind](place, dtype)
