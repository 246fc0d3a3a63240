"""What an installation promises: nothing missing, and nothing happens for merely importing it."""

import doctest
import importlib
import importlib.metadata
import json
import os
import pathlib
import pkgutil
import shutil
import subprocess
import sys
import tomllib

import pytest

import posterity

ROOT = pathlib.Path(posterity.__file__).parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
NOT_OURS = {"build", "dist", "docs", "benchmarks", "notebooks", "tests"}
MODULES = ["posterity", *(module.name for module in pkgutil.walk_packages(posterity.__path__, "posterity."))]

IMPORT_EVERYTHING = """
import importlib, json, socket, sys

attempts = []
def refuse(self, address):
    attempts.append(str(address))
    raise OSError("no network on import")
socket.socket.connect = socket.socket.connect_ex = refuse

import jax, jax._src.xla_bridge
settings = dict(jax.config.values)
for name in json.loads(sys.argv[1]):
    importlib.import_module(name)
print(json.dumps({
    "connections": attempts,
    "backends": jax._src.xla_bridge.backends_are_initialized(),
    "changed settings": [name for name, value in jax.config.values.items() if name in settings and settings[name] != value],
}))
"""


@pytest.fixture(scope="module")
def effects_of_import():
    """What importing every module did, seen from a process of its own."""
    output = subprocess.check_output([sys.executable, "-c", IMPORT_EVERYTHING, json.dumps(MODULES)], text=True)
    return json.loads(output.splitlines()[-1])


def test_every_package_is_listed():
    folders = {path.parent.relative_to(ROOT) for path in ROOT.rglob("__init__.py")}
    ours = {folder for folder in folders if not any(part.startswith(".") or part in NOT_OURS for part in folder.parts)}
    assert sorted(PYPROJECT["tool"]["setuptools"]["packages"]) == sorted(".".join(("posterity", *folder.parts)) for folder in ours)


def test_every_module_lies_in_a_package():
    folders = {path.parent for path in ROOT.rglob("*.py") if not any(part.startswith(".") or part in NOT_OURS for part in path.relative_to(ROOT).parts)}
    assert [folder for folder in folders if not (folder / "__init__.py").is_file()] == []


def test_version_is_that_of_the_distribution():
    assert posterity.__version__ == importlib.metadata.version("posterity") == PYPROJECT["project"]["version"]


def test_import_opens_no_connection(effects_of_import):
    assert effects_of_import["connections"] == []


def test_import_starts_no_jax_backend(effects_of_import):
    assert not effects_of_import["backends"]


def test_import_changes_no_jax_setting(effects_of_import):
    assert effects_of_import["changed settings"] == []


def _examples(name: str):
    """Those of models and inferences compile programs, which takes seconds each."""
    return pytest.param(name, marks=pytest.mark.slow) if name.startswith(("posterity.models.", "posterity.inference.")) else name


@pytest.mark.parametrize("name", [_examples(name) for name in MODULES])
def test_examples_in_docstrings_hold(name):
    assert doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE).failed == 0


@pytest.mark.parametrize(
    ("module", "statement"),
    [
        ("ppl/planted.py", "import posterity.inference"),
        ("ppl/planted.py", "import posterity.models"),
        ("ppl/planted.py", "import posterity"),
        ("models/planted.py", "import posterity.inference"),
        ("inference/planted.py", "import posterity.models"),
        ("models/planted.py", "import pickle"),
    ],
)
def test_contracts_catch_an_import_against_the_arrows(tmp_path, module, statement):
    linter = shutil.which("lint-imports", path=os.path.dirname(sys.executable))
    if linter is None:
        pytest.skip("import-linter is not installed")
    house = tmp_path / "posterity"
    shutil.copytree(ROOT, house, ignore=lambda folder, names: [name for name in names if name.startswith(".") or name in NOT_OURS])
    (house / module).write_text(statement + "\n")
    command = [linter, "--no-cache", "--config", ROOT / "pyproject.toml"]
    run = subprocess.run(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True)
    assert run.returncode != 0
    assert "planted" in run.stdout
