"""Every notebook has the shape that readers can rely on, and outputs fit to be read on the web."""

import re
import statistics
from pathlib import Path

import nbformat
import pytest

from rerank_utils.checks import check_metrics, expected_ranges

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
LEVELS = ("first steps", "basics", "advanced")


def names(paths):
    return [path.stem for path in paths]


def cells_of(path, kind=None):
    cells = nbformat.read(path, as_version=4).cells
    return [cell for cell in cells if kind in (None, cell.cell_type)]


def outputs_of(path):
    return [output for cell in cells_of(path, "code") for output in cell.outputs]


def text_of(output) -> str:
    return output.get("text", "") + "".join(
        str(value) for kind, value in output.get("data", {}).items() if kind.startswith("text/")
    )


def test_the_course_is_there():
    assert [name[:2] for name in names(NOTEBOOKS)][:5] == ["00", "01", "02", "03", "04"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=names(NOTEBOOKS))
class TestEveryNotebook:
    def test_opens_with_title_level_time_needs_and_aims(self, path):
        first = cells_of(path)[0]
        assert first.cell_type == "markdown"
        assert re.match(rf"# {path.stem[:2]} · \S.*: \S", first.source)
        facts = re.search(
            r"\*\*Level:\*\* (.+?) · \*\*Time:\*\* (\d+) minutes to read, about (\d+) to run"
            r"[\w ]* · \*\*You\s+need:\*\* \S",
            " ".join(first.source.split("\n")),
        )
        assert facts and facts.group(1) in LEVELS
        assert len(re.findall(r"^- ", first.source, re.MULTILINE)) >= 3

    def test_names_its_profile_before_anything_else_runs(self, path):
        assert "profile = get_profile()" in cells_of(path, "code")[0].source

    def test_has_numbered_sections_recap_exercises_and_next(self, path):
        text = "\n".join(cell.source for cell in cells_of(path, "markdown"))
        heads = re.findall(r"^## (.+)$", text, re.MULTILINE)
        numbers = [int(head.split(".")[0]) for head in heads if head[0].isdigit()]
        assert numbers == list(range(1, len(numbers) + 1)) and len(numbers) >= 4
        assert heads[-4].endswith(". Check your numbers")
        assert heads[-3:] == ["What we saw", "Exercises", "Next"]
        asked = re.findall(r"^\*\*(\d)\.\*\*", text, re.MULTILINE)
        assert asked == [str(i + 1) for i in range(len(asked))] and 2 <= len(asked) <= 4

    def test_every_exercise_has_a_collapsed_solution(self, path):
        text = "\n".join(cell.source for cell in cells_of(path, "markdown"))
        asked = re.findall(r"^\*\*\d\.\*\*", text, re.MULTILINE)
        solved = [c for c in cells_of(path, "code") if "solution" in c.metadata.get("tags", [])]
        assert len(solved) >= len(asked)
        assert all(cell.metadata["jupyter"]["source_hidden"] for cell in solved)

    def test_has_short_cells(self, path):
        lengths = [len(cell.source.splitlines()) for cell in cells_of(path, "code")]
        assert statistics.median(lengths) <= 7
        assert max(lengths) <= 22

    def test_shows_a_figure(self, path):
        assert any("image/png" in output.get("data", {}) for output in outputs_of(path))

    def test_was_run_from_top_to_bottom(self, path):
        counts = [cell.execution_count for cell in cells_of(path, "code")]
        assert counts == list(range(1, len(counts) + 1)), "run make notebooks"

    def test_outputs_hold_no_warning_error_path_or_bare_object(self, path):
        odd = re.compile(
            r"/(?:home|root|tmp|work|usr|opt)" + r"/|Warning:|<[\w.]+ object at 0x|%\|"
        )
        for output in outputs_of(path):
            assert output.output_type != "error"
            assert output.get("name") != "stderr"
            assert not odd.search(text_of(output)), text_of(output)[:300]
            assert "<Figure" not in output.get("data", {}).get("text/plain", "") or (
                "image/png" in output["data"]
            )

    def test_has_cells_whose_output_is_compared(self, path):
        tags = [tag for cell in cells_of(path, "code") for tag in cell.metadata.get("tags", [])]
        assert "nbval-check-output" in tags

    def test_links_resolve(self, path):
        text = "\n".join(cell.source for cell in cells_of(path, "markdown"))
        for target in re.findall(r"\]\(([^)#]+)\)", text):
            if not target.startswith("https://"):
                assert (path.parent / target).exists(), target

    def test_checks_its_numbers_last(self, path):
        code = [c for c in cells_of(path, "code") if "solution" not in c.metadata.get("tags", [])]
        call = f'check_metrics(profile.name, "{path.stem}", metrics)'
        assert call in code[-1].source

    def test_says_nothing_a_good_teacher_would_not(self, path):
        text = "\n".join(cell.source for cell in cells_of(path, "markdown"))
        assert not re.search(r"\b(simply|obviously|of course|powerful|seamless\w*|delve)\b", text)
        assert "!" not in re.sub(r"```.*?```|`[^`]*`|!\[|!=", "", text, flags=re.DOTALL)


def test_the_tables_of_the_notebooks_are_up_to_date(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "notebooks")
    import contents

    first, last = contents.MARKERS
    for page, prefix in contents.PAGES.items():
        text = page.read_text(encoding="utf-8")
        assert f"{first}\n{contents.table(prefix)}\n{last}" in text
    first, last = contents.MODEL_MARKERS
    assert f"{first}\n{contents.models()}\n{last}" in (ROOT / "README.md").read_text("utf-8")


RANGES = [
    (path.stem, metric) for path in NOTEBOOKS for metric in expected_ranges("offline", path.stem)
]


def middles(notebook):
    return {name: sum(r) / 2 for name, r in expected_ranges("offline", notebook).items()}


@pytest.mark.parametrize("notebook", sorted({notebook for notebook, _ in RANGES}))
def test_every_range_can_fail(notebook):
    check_metrics("offline", notebook, middles(notebook))
    for metric, (low, high) in expected_ranges("offline", notebook).items():
        for wrong in (low - 0.001, high + 0.001, float("nan")):
            with pytest.raises(AssertionError, match=re.escape(metric)):
                check_metrics("offline", notebook, {**middles(notebook), metric: wrong})


WIDE = {
    "tokens computed, loop over ours": 0.3,
    "loss, last over first": 0.6,
    "gain over the untrained head": 0.11,
    "student's loss, last over first": 0.5,
    "student, share of teacher": 0.5,
    "gain of the distilled": 0.17,
    "loss over ln 4, high rate": 20,
    "careless, linked": 2,
}
"""Metric -> width of a range that is no narrow one: what a training gives, and what is counted."""


@pytest.mark.parametrize(("notebook", "metric"), RANGES, ids=[" ".join(r) for r in RANGES])
def test_every_range_is_narrow_or_named(notebook, metric):
    low, high = expected_ranges("offline", notebook)[metric]
    narrow = max(0.04, 0.07 * high)  # of a measure; of what has another unit
    assert high - low <= WIDE.get(metric, narrow) + 1e-9


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_stored_check_is_that_of_today(path):
    """The ranges that a reader sees are those of the file, and no stored value sits at an edge."""
    (said,) = (
        output["text"]
        for cell in cells_of(path, "code")
        for output in cell.outputs
        if "check_metrics(" in cell.source and "text" in output
    )
    found = re.findall(r"^ok   (.+?) +(-?[\d.]+)   \[(.+), (.+)\]$", said, re.MULTILINE)
    ranges = expected_ranges("offline", path.stem)
    assert {name: (float(low), float(high)) for name, _, low, high in found} == ranges
    for name, value, low, high in found:
        if re.match(r"(nDCG|RR|MRR|R|AP|Success)\b", name) and "lost" not in name:
            room = min(float(value) - float(low), float(high) - float(value))
            assert room >= 0.0045 or float(low) in (0, 0.99), name


@pytest.mark.parametrize("notebook", ["00_quickstart", "03_reranking", "04_evaluation"])
def test_reranking_must_help_in_the_notebooks_that_say_so(notebook):
    gains = [m for n, m in RANGES if n == notebook and "gain" in m]
    assert gains and all(expected_ranges("offline", notebook)[metric][0] > 0 for metric in gains)
