"""Write constraints.txt: the versions that pip picks today for all extras, on each of the Pythons named.

    python .ci/constraints.py python3.11 python3.12 python3.13

Where the Pythons need different versions of a package, each line says for which it is. The `cuda` extra is left out: JAX itself
says which plugin fits which JAX.
"""

import itertools
import json
import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).parent.parent
EXTRAS = "checkpoint,hub,notebooks,plot,remote,test"


def main(interpreters: list[str]) -> None:
    resolved = dict(sorted(resolve(interpreter) for interpreter in interpreters))
    names = sorted({name for versions in resolved.values() for name in versions})
    lines = [line for name in names for line in pins(name, {python: versions.get(name) for python, versions in resolved.items()})]
    header = f"# Made by `make constraints` on Python {', '.join('.'.join(map(str, python)) for python in resolved)}.\n"
    (ROOT / "constraints.txt").write_text(header + "\n".join(lines) + "\n")


def resolve(interpreter: str) -> tuple[tuple[int, int], dict[str, str]]:
    """The interpreter's (major, minor), and the version of every package that a fresh installation would get."""
    with tempfile.TemporaryDirectory() as directory:
        subprocess.run([interpreter, "-m", "venv", directory], check=True)
        python = f"{directory}/bin/python"
        version = subprocess.check_output([python, "-c", "import sys; print(*sys.version_info[:2])"], text=True)
        report = subprocess.check_output([python, "-m", "pip", "install", "--quiet", "--dry-run", "--report=-", f"{ROOT}[{EXTRAS}]"])
    major, minor = map(int, version.split())
    packages = [item["metadata"] for item in json.loads(report)["install"]]
    return (major, minor), {package["name"].lower().replace("_", "-"): package["version"] for package in packages if package["name"] != "posterity"}


def pins(name: str, versions: dict[tuple[int, int], str | None]) -> list[str]:
    """One line for each run of neighbouring Pythons with the same version, with a marker where there are several runs."""
    runs = [(version, list(pythons)) for version, pythons in itertools.groupby(versions, key=versions.get)]
    lines = []
    for index, (version, pythons) in enumerate(runs):
        bounds = [f'python_version >= "{pythons[0][0]}.{pythons[0][1]}"'] if index else []
        if index + 1 < len(runs):
            after = runs[index + 1][1][0]
            bounds.append(f'python_version < "{after[0]}.{after[1]}"')
        if version is not None:
            lines.append(f"{name}=={version}" + (f" ; {' and '.join(bounds)}" if bounds else ""))
    return lines


if __name__ == "__main__":
    main(sys.argv[1:])
