"""nbval: what a library says on stderr, such as a progress bar, is not part of an output."""

import os

os.environ.pop("RERANK_PROFILE", None)  # the stored outputs and ranges are those of the default


def pytest_collectstart(collector):
    if hasattr(collector, "skip_compare"):
        collector.skip_compare += ("stderr",)
