"""The unit tests with the oldest and with the newest versions that pyproject.toml allows.

    python tests/upgrade_check.py [--folder DIR] [--only oldest|newest] [-- pytest arguments]

Makes two virtual environments, which takes some GB of disk and many minutes, so it is no part of
CI. torch is the one of constraints.txt in both: another version would be a check of its own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
WATCHED = ("FlagEmbedding", "transformers", "faiss-cpu", "numpy", "datasets")
ENVIRONMENTS = ("oldest", "newest")


def lower_bounds() -> dict[str, str]:
    """Package -> the oldest version that pyproject.toml allows, for the watched ones."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    bounds = {}
    for text in project["dependencies"]:
        wanted = Requirement(text)
        if wanted.name in WATCHED:
            (bounds[wanted.name],) = (s.version for s in wanted.specifier if s.operator == ">=")
    return bounds


def requirements(environment: str) -> list[str]:
    """What pip is asked for beside the project itself."""
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    torch = [pin for pin in pins if pin.startswith("torch==")]
    if environment == "newest":
        return torch
    return torch + [f"{name}=={version}" for name, version in lower_bounds().items()]


def check(environment: str, folder: Path, options: list[str]) -> list[str]:
    """One row of the table: the environment, the versions, and how the tests went."""
    home = folder / environment
    venv.create(home, clear=True, with_pip=True)
    python = str(home / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python"))
    wanted = [*requirements(environment), "-e", f"{ROOT}[test]"]
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    said = subprocess.run([*pip, *wanted], capture_output=True, text=True, cwd=folder)
    (folder / f"{environment}-install.log").write_text(said.stdout + said.stderr)
    if said.returncode:
        lines = [line for line in said.stderr.splitlines() if line.startswith("ERROR")]
        asked = lower_bounds() if environment == "oldest" else {}
        why = lines[-1] if lines else "see the log"
        return [environment, *(asked.get(n, "") for n in WATCHED), f"cannot be installed: {why}"]
    tests = [python, "-m", "pytest", "-q", *(options or ["tests"])]
    done = subprocess.run(tests, capture_output=True, text=True, cwd=ROOT)
    (folder / f"{environment}-tests.log").write_text(done.stdout + done.stderr)
    last = (done.stdout.strip().splitlines() or ["no output"])[-1].strip("= ")
    return [environment, *versions(python), last]


def versions(python: str) -> list[str]:
    """The versions of the watched packages in an environment."""
    listed = subprocess.run(
        [python, "-m", "pip", "list", "--format", "json", "--disable-pip-version-check"],
        capture_output=True,
        text=True,
        check=True,
    )
    found = {row["name"].lower(): row["version"] for row in json.loads(listed.stdout)}
    return [found[name.lower()] for name in WATCHED]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=ROOT / "artifacts" / "upgrade")
    parser.add_argument("--only", choices=ENVIRONMENTS, help="one environment instead of both")
    parser.add_argument("options", nargs="*", help="arguments for pytest (default: tests)")
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    folder = asked.folder.resolve()
    chosen = [asked.only] if asked.only else ENVIRONMENTS
    rows = [check(environment, folder, asked.options) for environment in chosen]
    print("| environment |", " | ".join(WATCHED), "| unit tests |")
    print("|" + "---|" * (len(WATCHED) + 2))
    for row in rows:
        print("|", " | ".join(row), "|")
    print(f"\nlogs: {asked.folder}")
    good = all("passed" in row[-1] and "failed" not in row[-1] for row in rows)
    return 0 if good and not any("error" in row[-1] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
