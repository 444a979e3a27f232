"""nbval: what a library says on stderr, such as a progress bar, is not part of an output."""


def pytest_collectstart(collector):
    if hasattr(collector, "skip_compare"):
        collector.skip_compare += ("stderr",)
