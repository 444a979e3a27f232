"""Checks: the metric contract between a notebook and the ranges its numbers must fall into."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from importlib.resources import files

RANGES_FILE = "expected.toml"


def expected_ranges(profile: str, notebook: str) -> dict[str, tuple[float, float]]:
    """Metric -> (lowest, highest) accepted value, as `expected.toml` states them.

    Args:
        profile: such as "offline".
        notebook: file name without ending, such as "00_quickstart".
    """
    rows = _table().get(profile, {}).get(notebook, {})
    return {metric: (float(low), float(high)) for metric, (low, high) in rows.items()}


def _table() -> dict:
    return tomllib.loads((files(__package__) / RANGES_FILE).read_text(encoding="utf-8"))


def published(profile: str) -> list[str]:
    """What others published for a profile, with each measure as its source defines it."""
    lines = []
    for row in _table().get("published", {}).get(profile, []):
        lines += [
            f"published, not measured here: {row['measure']} {row['before']} to {row['after']}",
            f"  defined there as {row['defined']}; here see {row['here']}",
        ]
    return lines


def check_metrics(profile: str, notebook: str, metrics: Mapping[str, float]) -> str:
    """Compare the numbers of a notebook with the expected ranges.

    Args:
        profile: the profile that ran; one without ranges is reported as not checked.
        notebook: file name without ending.
        metrics: metric -> measured value, exactly those that have a range.

    Returns:
        One line a metric, to print.

    Raises:
        AssertionError: the profile has ranges but this notebook none, a value is outside its
            range (as NaN is), or a metric has no range or a range no metric.
    """
    if profile not in _table():
        said = f"No ranges are recorded for the profile {profile!r}: nothing was checked."
        return "\n".join([said, *published(profile)])
    ranges = expected_ranges(profile, notebook)
    if not ranges:
        raise AssertionError(f"{RANGES_FILE} has no ranges for {profile}, {notebook!r}.")
    if ranges.keys() != metrics.keys():
        odd = ", ".join(sorted(ranges.keys() ^ metrics.keys()))
        raise AssertionError(f"Metrics and ranges of {notebook} do not match: {odd}.")
    lines, wrong = [], []
    for metric, (low, high) in ranges.items():
        value = metrics[metric]
        inside = low <= value <= high
        lines.append(f"{'ok ' if inside else 'OUT'}  {metric:<24}{value:7.3f}   [{low}, {high}]")
        if not inside:
            wrong.append(f"{metric} is {value:.4f}, expected {low} to {high}")
    if wrong:
        raise AssertionError(f"{profile}, {notebook}: " + "; ".join(wrong) + ".")
    return "\n".join(lines)
