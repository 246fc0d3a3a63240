"""Models of the hub: from its cache without the network, downloaded where something is missing, with a reason where that cannot be.

The network is a server in this process that answers as the hub does; nothing leaves the machine.
"""

import builtins
import http.server
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from posterity.models.lm import hub
from posterity.models.lm.load import load, load_classifier
from posterity.tests.fixtures.families import CASES, CLASSIFIERS, write

constants = pytest.importorskip("huggingface_hub.constants")
COMMIT = "0123456789abcdef0123456789abcdef01234567"
SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]


@pytest.fixture
def files(tmp_path) -> Path:
    """What the model tiny/gpt2 is made of."""
    return write(tmp_path / "files", CASES["GPT-2"], shards=2)


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache, without a network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "cache"


def put(cache: Path, files: Path, without: tuple[str, ...] = (), name: str = "tiny/gpt2", ref: str = "main") -> Path:
    """The files in the layout of the hub library's cache: blobs, a snapshot of links to them, and the commit that a name stands for."""
    place = cache / f"models--{name.replace('/', '--')}"
    snapshot = place / "snapshots" / COMMIT
    for folder in (snapshot, place / "refs", place / "blobs"):
        folder.mkdir(parents=True, exist_ok=True)
    (place / "refs" / ref).write_text(COMMIT)
    for file in files.iterdir():
        if file.name not in without:
            blob = place / "blobs" / etag(file.name)
            blob.write_bytes(file.read_bytes())
            (snapshot / file.name).symlink_to(Path("..") / ".." / "blobs" / blob.name)
    return snapshot


def etag(name: str) -> str:
    return name.encode().hex()[:40].ljust(40, "0")


@pytest.fixture
def network(files, monkeypatch):
    """A hub that has tiny/gpt2; the paths that were asked for."""
    asked = []

    class Hub(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(f"{self.command} {self.path}")
            at, _, name = self.path.partition(f"/tiny/gpt2/resolve/{COMMIT}/")
            if self.path.startswith("/api/models/tiny/gpt2/tree/"):
                listing = [{"type": "file", "path": file.name, "size": file.stat().st_size, "oid": etag(file.name)} for file in files.iterdir()]
                self.answer(200, json.dumps(listing).encode())
            elif self.path.startswith("/api/models/tiny/gpt2/revision/main"):
                info = {"id": "tiny/gpt2", "sha": COMMIT, "siblings": [{"rfilename": file.name} for file in files.iterdir()]}
                self.answer(200, json.dumps(info).encode())
            elif not at and (files / name).is_file():
                self.answer(200, (files / name).read_bytes(), {"ETag": f'"{etag(name)}"', "X-Repo-Commit": COMMIT})
            else:
                code = "RevisionNotFound" if "/tiny/gpt2/revision/" in self.path else "RepoNotFound"
                self.answer(404, b"{}", {"X-Error-Code": code})

        do_HEAD = do_GET  # noqa: N815 - the library's own name

        def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None):
            self.send_response(status)
            for key, value in (headers or {}).items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    yield asked
    server.shutdown()
    server.server_close()


def test_a_model_in_the_cache_is_loaded_without_the_network(cache, files):
    put(cache, files)
    lm = load("hub:tiny/gpt2")
    assert lm.name == "hub:tiny/gpt2"
    assert lm.parameters == load(f"hf:{files}").parameters


def test_the_network_is_not_even_asked_for_what_is_in_the_cache(cache, files, network):
    put(cache, files)
    assert hub.directory("tiny/gpt2").name == COMMIT
    assert network == []


def test_a_revision_may_be_named(cache, files):
    put(cache, files, ref="v1.0")
    assert hub.directory("tiny/gpt2@v1.0") == hub.directory(f"tiny/gpt2@{COMMIT}")
    with pytest.raises(FileNotFoundError, match=r"hub: tiny/gpt2@main is not in the cache \(config.json missing\) and could not be downloaded"):
        hub.directory("tiny/gpt2@main")


def test_the_cache_is_where_the_environment_says(tmp_path, files):
    """In a process of its own, with `HF_HUB_CACHE` and `HF_HUB_OFFLINE=1`, whose sockets cannot connect."""
    put(tmp_path / "elsewhere", files)
    script = """
import socket
def refuse(*_): raise OSError("no network")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
from posterity.models.lm import hub
print(hub.directory("tiny/gpt2"))
"""
    environment = os.environ | {"HF_HUB_CACHE": str(tmp_path / "elsewhere"), "HF_HUB_OFFLINE": "1"}
    found = subprocess.run([sys.executable, "-c", script], check=True, timeout=300, env=environment, capture_output=True, text=True)
    assert Path(found.stdout.strip()) == tmp_path / "elsewhere" / "models--tiny--gpt2" / "snapshots" / COMMIT


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json", SHARDS[1]])
def test_a_download_that_was_cut_off_is_named_when_there_is_no_network(cache, files, missing):
    put(cache, files, without=(missing,))
    with pytest.raises(FileNotFoundError, match=rf"hub: tiny/gpt2 has no {missing} in .*: either .* or its download was cut off"):
        load("hub:tiny/gpt2")


def test_a_download_that_was_cut_off_is_taken_up_again(cache, files, network):
    snapshot = put(cache, files, without=(SHARDS[1], "tokenizer.json"))
    (cache / "models--tiny--gpt2" / "blobs" / f"{etag(SHARDS[1])}.incomplete").write_bytes(b"the beginning of something else")
    assert hub.directory("tiny/gpt2") == snapshot
    assert {file.name: file.read_bytes() for file in snapshot.iterdir()} == {file.name: file.read_bytes() for file in files.iterdir()}
    assert not [path for path in network if path.startswith("GET") and "config.json" in path]  # what was there is not fetched again
    assert np.isfinite(load("hub:tiny/gpt2").decoder.norm.scale[...]).all()


def test_a_model_that_the_cache_lacks_is_downloaded_once(cache, files, network):
    first = hub.directory("tiny/gpt2")
    asked = len(network)
    assert asked > 0
    assert hub.directory("tiny/gpt2") == first
    assert len(network) == asked


def test_a_model_that_is_not_there_is_named(cache, network):
    with pytest.raises(FileNotFoundError, match="hub: there is no model tiny/nothing on the hub, or it is private"):
        load("hub:tiny/nothing")
    with pytest.raises(FileNotFoundError, match="hub: there is no model tiny/gpt2@v9 on the hub"):
        load("hub:tiny/gpt2@v9")


def test_a_model_without_safetensors_is_named_with_what_it_lacks(cache, files, network):
    for file in [*SHARDS, "model.safetensors.index.json"]:
        (files / file).unlink()
    (files / "pytorch_model.bin").write_bytes(b"pickled")
    with pytest.raises(FileNotFoundError, match=r"hub: tiny/gpt2 has no model.safetensors in .*: either the model has none"):
        load("hub:tiny/gpt2")
    assert not list(cache.rglob("pytorch_model.bin"))


@pytest.mark.parametrize("name", ["gpt2", "a/b/c", "/b", "a/", "tiny/gpt2@", "tiny/../gpt2", "tiny/g pt2"])
def test_what_is_no_name_of_a_model_is_refused(cache, name):
    with pytest.raises(ValueError, match="hub: "):
        load(f"hub:{name}")


def test_classifiers_come_from_the_hub_too(cache, tmp_path):
    put(cache, write(tmp_path / "reward", CLASSIFIERS["Qwen2, one reward"]), name="tiny/reward")
    assert load_classifier("hub:tiny/reward").labels == ("reward",)


def test_without_the_extra_it_is_named(cache, monkeypatch):
    original = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.startswith("huggingface_hub"):
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match=r"pip install 'posterity\[hub\]'"):
        hub.directory("tiny/gpt2")
