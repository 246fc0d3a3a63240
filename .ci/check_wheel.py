"""Build the wheel and hold it to its word: exactly the package inside, and all of it importable with the core dependencies alone."""

import pathlib
import re
import subprocess
import sys
import tempfile
import tomllib
import zipfile

ROOT = pathlib.Path(__file__).parent.parent
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
PIP = ["-m", "pip", "-qq", "--disable-pip-version-check"]

IMPORT_EVERYTHING = """
import importlib, pkgutil, posterity
names = [module.name for module in pkgutil.walk_packages(posterity.__path__, "posterity.")]
for name in names:
    importlib.import_module(name)
print(f"{len(names)} modules imported from {posterity.__path__[0]}")
"""


def expected_files() -> set[str]:
    """The modules of every listed package, the typing marker, and the weights with their cards."""
    folders = [package.split(".")[1:] for package in SETTINGS["packages"]]
    sources = [path for folder in folders for path in ROOT.joinpath(*folder).glob("*.py")]
    data = [path for suffix in ("json", "md", "safetensors") for path in ROOT.glob(f"models/weights/**/*.{suffix}")]
    return {f"posterity/{path.relative_to(ROOT).as_posix()}" for path in [*sources, *data, ROOT / "py.typed"]}


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        work = pathlib.Path(directory)
        # From a copy of what git knows or could add: a build folder left in the tree would leak stale modules into the wheel.
        listed = subprocess.check_output(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, text=True)
        for name in filter(lambda name: (ROOT / name).is_file(), listed.split("\0")):
            (work / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            (work / "source" / name).write_bytes((ROOT / name).read_bytes())
        subprocess.run([sys.executable, *PIP, "wheel", "--no-deps", f"--wheel-dir={work}", str(work / "source")], check=True)
        (wheel,) = work.glob("*.whl")
        found = {name for name in zipfile.ZipFile(wheel).namelist() if not re.match(r"posterity-[^/]+\.dist-info/", name)}
        if found != expected_files():
            sys.exit(f"{wheel.name} lacks {sorted(expected_files() - found)} and has beyond the package {sorted(found - expected_files())}")
        print(f"{wheel.name}: {len(found)} files, {wheel.stat().st_size / 1e6:.1f} MB, exactly the package", flush=True)

        subprocess.run([sys.executable, "-m", "venv", work / "venv"], check=True)
        python = work / "venv" / "bin" / "python"
        subprocess.run([python, *PIP, "install", f"--constraint={ROOT / 'constraints.txt'}", wheel], check=True)
        subprocess.run([python, "-I", "-c", IMPORT_EVERYTHING], check=True, cwd=work)
        subprocess.run([work / "venv" / "bin" / "posterity", "--help"], check=True, cwd=work, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
