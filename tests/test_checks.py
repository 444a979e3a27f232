"""The metric contract: what check_metrics accepts and refuses."""

import re

import pytest

from rerank_utils.checks import check_metrics, expected_ranges


def middles():
    ranges = expected_ranges("offline", "00_quickstart")
    return {name: sum(bounds) / 2 for name, bounds in ranges.items()}


def test_a_missing_or_unknown_metric_fails():
    values = middles()
    with pytest.raises(AssertionError, match="do not match: new"):
        check_metrics("offline", "00_quickstart", {**values, "new": 0.5})
    first = values.popitem()[0]
    with pytest.raises(AssertionError, match=re.escape(first)):
        check_metrics("offline", "00_quickstart", values)


def test_a_profile_without_ranges_says_so():
    assert "nothing was checked" in check_metrics("msmarco", "00_quickstart", {"x": 1.0})


def test_published_figures_are_labelled_so_and_never_checked():
    said = check_metrics("msmarco", "00_quickstart", {"R@10": 0.0})
    assert "published, not measured here: MRR@10 0.9825 to 0.995" in said
    assert "1 as soon as one is found; here see Success@1" in said
    assert "published" not in check_metrics("beir:somewhere", "00_quickstart", {"R@10": 0.0})


def test_a_misspelt_notebook_fails():
    with pytest.raises(AssertionError, match="no ranges for offline, '00_quikstart'"):
        check_metrics("offline", "00_quikstart", {"x": 1.0})
