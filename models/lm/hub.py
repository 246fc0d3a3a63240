"""Models of the Hugging Face hub, in the hub library's own cache: what is there is used as it is, without the network."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from posterity.models.lm.tensors import weight_files

# What a model directory needs, and no other format of the same weights.
TEXTS = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "*.safetensors.index.json"]
WEIGHTS = ["model.safetensors", "model-*.safetensors"]


def directory(name: str) -> Path:
    """The directory of a model, `"owner/name"` or `"owner/name@revision"`: from the cache if it is whole there, else downloaded.

    The cache is the hub library's (`HF_HUB_CACHE`, `HF_HOME`), shared with whatever else uses it; `HF_HUB_OFFLINE=1` keeps from
    the network. A file appears in it only when all of it has come, so a download that was cut off is taken up again.

    Raises:
      ImportError: without the extra `hub`.
      ValueError: for a name that is not one.
      FileNotFoundError: when the hub has no such model, or the model no file that is needed; when it is not in the cache and
        the network is not to be used, or not there.
    """
    snapshot_download, errors = _library()
    repository, _, revision = name.partition("@")
    if len(parts := repository.split("/")) != 2 or not all(parts) or (not revision and "@" in name):
        raise ValueError(f"hub: a model is 'owner/name' or 'owner/name@revision', got {name!r}")

    def fetch(local: bool) -> Path:
        return Path(snapshot_download(repository, revision=revision or None, allow_patterns=TEXTS + WEIGHTS, local_files_only=local))

    try:
        missing = missing_files(found := fetch(local=True))
    except errors.HFValidationError as error:
        raise ValueError(f"hub: {name!r} is no name of a model: {error}") from error
    except errors.LocalEntryNotFoundError:
        missing, found = ["config.json"], None
    if found is not None and not missing:
        return found
    try:
        found = fetch(local=False)
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        raise FileNotFoundError(f"hub: there is no model {name} on the hub, or it is private ({_first_line(error)})") from error
    except (OSError, errors.HTTPError) as error:  # being offline is one of the former
        raise FileNotFoundError(f"hub: {name} is not in the cache ({', '.join(missing)} missing) and could not be downloaded: {_first_line(error)}") from error
    if missing := missing_files(found):  # offline the library returns what there is
        reasons = "either the model has none, and then it cannot be used, or its download was cut off and the hub cannot be reached to go on with it"
        raise FileNotFoundError(f"hub: {name} has no {', '.join(missing)} in {found}: {reasons}")
    return found


def missing_files(found: Path) -> list[str]:
    """What a model directory lacks of what it needs."""
    index = found / "model.safetensors.index.json"
    needed = ["config.json", "tokenizer.json", *(weight_files(index) if index.is_file() else ["model.safetensors"])]
    return [file for file in needed if not (found / file).is_file()]


def _library() -> tuple[Callable[..., str], Any]:
    try:
        from huggingface_hub import errors, snapshot_download
    except ImportError as error:
        raise ImportError("loading from the hub needs the extra `hub`: pip install 'posterity[hub]'") from error
    return snapshot_download, errors


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
