"""Documents longer than a reranker's window, cut into pieces that fit."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LEAST = 16
"""Tokens of a piece; with fewer it says nothing."""


def split_sentences(text: str) -> list[str]:
    """The sentences of a text; what a colon ends is one too, so that a heading is one."""
    return re.split(r"(?<=[.!?:])\s+", text)


def piece_length(window: int) -> int:
    """Tokens of a piece for a window: two thirds of it, so that a third is left to the query."""
    return window * 2 // 3


def cut_into_pieces(
    texts: Iterable[str], length: int, tokenizer: PreTrainedTokenizerBase
) -> dict[str, list[str]]:
    """Each text as pieces of whole sentences.

    A text that fits is its only piece. Of a longer one every piece begins with the first sentence,
    in many collections the title: without it a sentence from the middle may not say what it is
    about. A sentence that does not fit by itself is cut between words.

    Args:
        texts: the documents.
        length: tokens of a piece at most, special tokens not counted. A single word may have more.
        tokenizer: the reranker's.

    Returns:
        text -> its pieces, in their order.

    Raises:
        ValueError: length is below `LEAST`.
    """
    if length < LEAST:
        raise ValueError(
            f"A piece of {length} tokens is too short to say anything: give {LEAST} or more, or "
            "open the reranker with a larger max_length."
        )

    @cache
    def count(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    return {
        text: [text] if count(text) <= length else _pieces(text, length, count)
        for text in dict.fromkeys(texts)
    }


def _pieces(text: str, length: int, count: Callable[[str], int]) -> list[str]:
    first, *rest = split_sentences(text)
    if not rest or count(first) > length // 2:  # no title, or one that leaves too little room
        first, rest = "", [first, *rest]
    room = length - count(first)
    parts = [part for s in rest for part in ([s] if count(s) <= room else s.split())]
    return [" ".join([first, *pack] if first else pack) for pack in _packs(parts, room, count)]


def _packs(parts: Sequence[str], room: int, count: Callable[[str], int]) -> list[list[str]]:
    """Neighbours together, as many as there is room for."""
    packs: list[list[str]] = [[]]
    used = 0
    for part in parts:
        size = count(part)
        if packs[-1] and used + size > room:
            packs.append([])
            used = 0
        packs[-1].append(part)
        used += size
    return packs
