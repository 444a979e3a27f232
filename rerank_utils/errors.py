"""Which errors a command tells in one sentence: those that its user can mend."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

MENDABLE = (ValueError, OSError, ImportError, KeyError, MemoryError, FloatingPointError)
OUT_OF_MEMORY = (
    "The GPU's memory is too small for this model: take a smaller one, hide the GPU (set "
    "CUDA_VISIBLE_DEVICES to -1), or close what else uses it."
)


def sentence(error: Exception) -> str | None:
    """What to tell about an error; None where it is a mistake of the code, to be shown whole."""
    name = type(error).__name__  # two classes of libraries that are slow to import
    if name == "OutOfMemoryError":
        return OUT_OF_MEMORY
    if name == "SafetensorError":
        return f"Weights could not be read or written ({error}): is the disk full, or a file torn?"
    if isinstance(error, KeyError):
        return str(error.args[0])
    return str(error) if isinstance(error, MENDABLE) else None


@contextmanager
def told() -> Iterator[None]:
    """A command's work: an error that its user can mend ends it with a sentence, status 1."""
    try:
        yield
    except Exception as error:
        if (said := sentence(error)) is None:
            raise
        sys.exit(f"error: {said}")
