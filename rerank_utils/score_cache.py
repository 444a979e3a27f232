"""Scores that a reranker has given, kept so that they need not be computed again."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

_KEY_LENGTH = 32


class ScoreCache:
    """Scores of pairs that one reranker has already given, kept in a text file.

    A sweep over depths costs its union once, and an interrupted run goes on where it stopped.
    Use one file for each reranker, maximum length, backend and dtype.

    Args:
        path: the file; made when the first score is added.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._scores: dict[str, float] = {}
        if self.path.exists():
            text = self.path.read_text(encoding="ascii")
            whole = text[: text.rfind("\n") + 1]
            if whole != text:  # an interrupt cut the last line short: drop it
                self.path.write_text(whole, encoding="ascii")
            for line in whole.splitlines():
                key, score = line.split()
                self._scores[key] = float(score)

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
        with self.path.open("a", encoding="ascii") as stream:
            stream.writelines(f"{key} {score!r}\n" for key, score in new.items())

    @staticmethod
    def _key(pair: tuple[str, str]) -> str:
        return hashlib.sha256("\0".join(pair).encode()).hexdigest()[:_KEY_LENGTH]
