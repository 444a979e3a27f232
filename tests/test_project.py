"""The files around the code: they agree with each other, and imports stay light and one-way."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "rerank_utils"

# room -> the rooms it may import
NOUNS = {"collection", "run"}
TOOLS = {"batching", "hub"}
ROOMS = {
    "files": set(),
    "errors": set(),
    "collection": {"files"},
    "run": {"files"},
    "batching": {"files"},
    "download": {"zoo"},
    "hub": {"download", "zoo"},
    "pairs": {"batching"},
    "pieces": set(),
    "encoder": set(),
    "llm": {"batching", "pairs"},
    "engines": {"batching", "bundled", "encoder"},
    "cwe": {"collection"},
    "embedding": TOOLS | {"files", "opening", "zoo"},
    "beir": {"collection", "files", "hub"},
    "trec": NOUNS | {"files"},
    "loaders": {"beir", "collection", "cwe", "trec"},
    "indexing": NOUNS | {"batching"},
    "lexical": NOUNS | {"batching"},
    "reranking": NOUNS
    | TOOLS
    | {"engines", "llm", "opening", "pairs", "pieces", "score_cache", "zoo"},
    "fusion": NOUNS,
    "evaluation": NOUNS,
    "experiment": NOUNS | {"evaluation", "files"},
    "analysis": NOUNS | {"evaluation"},
    "calibration": set(),
    "plotting": {"analysis", "evaluation"},
    "bundled": set(),
    "checks": set(),
    "score_cache": set(),
    "zoo": set(),
    "training_data": {"cwe", "pieces"},
    "descent": {"pairs"},
    "adapters": {"bundled", "encoder"},
    "mpnet": {"bundled"},
    "tuning": {
        *("adapters", "bundled", "descent", "mpnet", "teacher"),
        *("training_data", "training_folder", "training_recipe"),
    },
    "teacher": {"descent", "lexical", "training_data", "training_folder"},
    "candidates": {"teacher", "training_data"},
    "training": {
        "adapters",
        "bundled",
        "candidates",
        "batching",
        "descent",
        "errors",
        "files",
        "hub",
        "pairs",
        "teacher",
        "training_data",
        "training_folder",
        "training_recipe",
        "tuning",
    },
    "training_recipe": {"bundled", "candidates", "pieces"},
    "opening": {"zoo"},
    "tiny": {"bundled", "cwe", "hub"},
    "mining": NOUNS | {"files"},
    "trainer": {"training_folder"},
    "training_folder": TOOLS | {"bundled", "engines", "files", "mining"},
    "finetuning": TOOLS | {"bundled", "mining", "opening", "trainer", "training_folder"},
    "matching": {"descent", "encoder", "mining", "pairs", "training_folder"},
    "distillation": TOOLS
    | {"bundled", "matching", "mining", "opening", "reranking", "training_folder"},
    "profiles": {"bundled", "collection", "loaders", "zoo"},
}


def test_arrows_point_down_only():
    modules = {path.stem for path in PACKAGE.glob("*.py")}
    top = modules - set(ROOMS) - {"__init__"}
    assert top == {"pipeline", "report", "training_curve", "__main__"}
    for name, allowed in ROOMS.items():
        tree = ast.parse((PACKAGE / f"{name}.py").read_text(encoding="utf-8"))
        imported = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.level == 1:
                imported |= {node.module} if node.module else {a.name for a in node.names}
        assert imported <= allowed, f"{name} imports {imported - allowed}"


def test_import_is_light():
    code = (
        "import sys;"
        "import rerank_utils, rerank_utils.pipeline;"
        "heavy = {'torch', 'transformers', 'faiss', 'datasets', 'FlagEmbedding', 'matplotlib'};"
        "heavy |= {'bm25s', 'scipy', 'sklearn'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_pyproject_and_environment_name_the_same_packages():
    lines = (ROOT / "environment.yml").read_text(encoding="utf-8").splitlines()
    listed = [line.split("- ", 1)[1] for line in lines if line.startswith("      - ")]
    packages = [line for line in listed if not line.startswith("-")]
    wanted = project()["dependencies"] + project()["optional-dependencies"]["test"]
    assert packages == wanted
    assert "-c constraints.txt" in listed and "-e ." in listed
    assert any(line.strip() == "- python=3.11" for line in lines)


def test_the_quick_engines_are_an_extra_and_are_tested():
    extras = project()["optional-dependencies"]
    assert extras["fast"] and set(extras["fast"]) <= set(extras["test"])
    assert not set(extras["fast"]) & set(project()["dependencies"])


def test_every_package_is_pinned_within_its_range():
    pins = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            name, version = line.split("==")
            pins[re.sub(r"[-_.]+", "-", name).lower()] = version
    for text in project()["dependencies"] + project()["optional-dependencies"]["test"]:
        wanted = Requirement(text)
        name = re.sub(r"[-_.]+", "-", wanted.name).lower()
        assert name in pins, f"{name} is not in constraints.txt"
        assert wanted.specifier.contains(pins[name]), f"{name}=={pins[name]} against {text}"


def test_the_mission_packages_are_there():
    names = {Requirement(text).name for text in project()["dependencies"]}
    names |= {Requirement(t).name for t in project()["optional-dependencies"]["test"]}
    wanted = {"jupyterlab", "nbval", "FlagEmbedding", "faiss-cpu", "numpy", "datasets"}
    assert wanted | {"matplotlib"} <= names


@pytest.mark.parametrize(
    "name", ["run", "test", "lab", "notebooks", "embedder", "evaluate", "bench"]
)
def test_make_knows_the_command_and_the_readme_names_it(name):
    assert re.search(rf"^{name}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert f"make {name}" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_links_of_the_readme_resolve():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / target).exists(), target


def test_no_machine_path_or_registry_in_a_file():
    folders = ("notebooks", "rerank_utils", "tests", "benchmarks", ".ci")
    files = [path for path in ROOT.iterdir() if path.is_file()]
    files += [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()]
    made = {"artifacts", "__pycache__", ".ipynb_checkpoints"}
    files = [path for path in files if made.isdisjoint(path.relative_to(ROOT).parts)]
    texts = [path for path in files if path.suffix not in {".safetensors", ".png"}]
    assert len(texts) > 30
    forbidden = re.compile("/(?:home|root|tmp|work)" + "/|--(?:extra-)?index" + "-url")
    for path in texts:
        found = forbidden.search(path.read_text(encoding="utf-8"))
        assert not found, f"{path}: {found and found.group()}"
