"""Scores that a reranker has given, kept so that they need not be computed again."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

_KEY_LENGTH = 32
_LINE = re.compile(rb"([0-9a-f]{32}) (-?[0-9.e+-]+)")


class ScoreCache:
    """Scores of pairs that one reranker has already given, kept in a text file.

    A sweep over depths costs its union once, and an interrupted run goes on where it stopped.
    Use one file for each reranker with its instructions or prompt, maximum length, device, backend
    and dtype. Several processes can add to it.

    Args:
        path: the file; made when the first score is added.

    Raises:
        ValueError: the file holds no scores.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._scores: dict[str, float] = {}
        self._torn = False
        if self.path.exists():
            content = self.path.read_bytes()
            # what a killed process cut short is no score: `add` ends it with a mark
            self._torn = not content.endswith(b"\n")
            found = [_LINE.fullmatch(line) for line in content.split(b"\n")[:-1]]
            self._scores = {m[1].decode(): float(m[2]) for m in found if m}
            if found and not self._scores:
                raise ValueError(f"{self.path} holds no scores: give a file of its own.")

    def __contains__(self, pair: tuple[str, str]) -> bool:
        return self._key(pair) in self._scores

    def __len__(self) -> int:
        return len(self._scores)

    def __getitem__(self, pair: tuple[str, str]) -> float:
        return self._scores[self._key(pair)]

    def add(self, pairs: Sequence[tuple[str, str]], scores: np.ndarray) -> None:
        """Keep the scores of these pairs, in memory and in the file."""
        new = {self._key(pair): float(score) for pair, score in zip(pairs, scores, strict=True)}
        self._scores |= new
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = "#\n" * self._torn + "".join(f"{key} {score!r}\n" for key, score in new.items())
        self._torn = False
        content = lines.encode()
        with self.path.open("ab", buffering=0) as stream:  # one write: no other comes in between
            written = stream.write(content)
        if written < len(content):
            self._torn = True
            raise OSError(f"Scores could not be kept in {self.path}: make room on the disk.")

    @staticmethod
    def _key(pair: tuple[str, str]) -> str:
        query, document = pair
        text = f"{len(query)} {query}{document}"
        return hashlib.sha256(text.encode()).hexdigest()[:_KEY_LENGTH]
