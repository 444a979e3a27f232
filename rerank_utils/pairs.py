"""Pairs of texts as token ids, the way FlagReranker builds them, each distinct text once."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .batching import Arrays, Encoded, TruncationWarning

if TYPE_CHECKING:
    from FlagEmbedding import FlagReranker


@dataclass
class Layout:
    """Where a model wants its special tokens.

    BERT has `[CLS] query [SEP] document [SEP]`, XLM-RoBERTa `<s> query </s></s> document </s>`.
    A pair whose document holds no token is a single text to the tokenizer: `[CLS] query [SEP]`.

    Attributes:
        special: the ids of the special tokens before, between and behind the texts.
        types: the token type of each of them, then of query and document.
        single: the ids of the special tokens before and behind a single text.
        pad: what fills short rows: input name -> id, for the inputs that the model has.
    """

    special: tuple[list[int], list[int], list[int]]
    types: tuple[list[int], list[int], list[int], int, int]
    single: tuple[list[int], list[int]]
    pad: dict[str, int]

    @classmethod
    def of(cls, tokenizer: Any) -> Layout:
        """Read the layout off texts that the tokenizer itself has put together."""
        pair = tokenizer("a", "a", return_token_type_ids=True)
        side, types = pair.sequence_ids(0), pair["token_type_ids"]
        first, second = side.index(0), side.index(1)
        ends = first + side.count(0), second + side.count(1)
        places = slice(0, first), slice(ends[0], second), slice(ends[1], None)
        alone = tokenizer("a")
        side = alone.sequence_ids(0)
        start, end = side.index(0), side.index(0) + side.count(0)
        pad = {"input_ids": tokenizer.pad_token_id, "attention_mask": 0}
        if "token_type_ids" in tokenizer.model_input_names:
            pad["token_type_ids"] = tokenizer.pad_token_type_id
        return cls(
            tuple(pair["input_ids"][place] for place in places),
            (*(types[place] for place in places), types[first], types[second]),
            (alone["input_ids"][:start], alone["input_ids"][end:]),
            pad,
        )

    def room(self, query: list[int], limit: int) -> int:
        """Tokens that a query leaves to its document."""
        return limit - sum(map(len, self.special)) - len(query)

    def length(self, query: list[int], document: list[int]) -> int:
        """Tokens of a pair."""
        places = self.special if document else self.single
        return sum(map(len, places)) + len(query) + len(document)

    def ids(self, query: list[int], document: list[int]) -> list[int]:
        """The input ids of a pair."""
        if not document:
            return self.single[0] + query + self.single[1]
        before, between, behind = self.special
        return before + query + between + document + behind

    def type_ids(self, query: list[int], document: list[int]) -> list[int]:
        """The token type ids of a pair."""
        before, between, behind, first, second = self.types
        if not document:
            return [first] * self.length(query, document)
        return before + [first] * len(query) + between + [second] * len(document) + behind


class Reader(NamedTuple):
    """What of a reranker says how it reads a pair: all that `PairEncoder` asks of it."""

    tokenizer: Any
    max_length: int
    query_max_length: int | None = None


class PairEncoder:
    """Tokenizes pairs for one reranker; remembers each text, and which were cut.

    A query may have `query_max_length` tokens (by default 3/4 of `max_length`), then the
    document is cut to the room that is left.

    Args:
        reranker: an encoder-only FlagReranker; or a `Reader`, where there is none yet.
    """

    def __init__(self, reranker: FlagReranker | Reader):
        self.tokenizer = reranker.tokenizer
        self.limit = reranker.max_length
        self.query_limit = reranker.query_max_length or self.limit * 3 // 4
        self.layout = self._read_layout(reranker)
        self.window = self.limit
        self._special = set(self.tokenizer.all_special_ids)
        self._left = self.tokenizer.truncation_side == "left"
        self._queries: dict[str, list[int]] = {}
        self._documents: dict[str, list[int]] = {}
        self._cut: tuple[set[str], set[str]] = (set(), set())

    def _read_layout(self, reranker: FlagReranker | Reader) -> Layout:
        return Layout.of(self.tokenizer)

    def __call__(self, positions: np.ndarray, pairs: Sequence[tuple[str, str]]) -> Encoded:
        """Tokenize the pairs that stand at these positions of what the caller gave.

        Raises:
            ValueError: a query leaves no room for its document.
        """
        self._read(self._queries, (query for query, _ in pairs), self.query_limit, 0)
        self._read(self._documents, (document for _, document in pairs), self.limit, 1)
        rows = [self._fit(query, document) for query, document in pairs]
        lengths = np.array([self.layout.length(*row) for row in rows])

        def collate(chosen: np.ndarray) -> Arrays:
            return self._pad([rows[i] for i in chosen], int(lengths[chosen].max()))

        return Encoded(positions, lengths, collate)

    def warn_of_cuts(self) -> None:
        """Say once how many texts were longer than the window."""
        if any(self._cut):
            queries, documents = map(len, self._cut)
            warnings.warn(
                f"{queries:,} of {len(self._queries):,} queries and {documents:,} of "
                f"{len(self._documents):,} documents are longer than the window of "
                f"{self.limit} tokens a pair: their ends were not read.",
                TruncationWarning,
                stacklevel=5,
            )

    def _read(
        self, known: dict[str, list[int]], texts: Iterable[str], limit: int, side: int
    ) -> None:
        """Add the token ids of texts that are not known yet, cut to `limit`.

        FlagReranker turns the ids back into text and tokenizes that again. Both ways give the
        same ids, but for texts that were cut (perhaps within a word), begin or end with white
        space, or hold special tokens, the one for unknown characters among them: these take its
        way round.
        """
        new = [text for text in dict.fromkeys(texts) if text not in known]
        if not new:
            return
        for text, ids in zip(new, self._ids(new), strict=True):
            if len(ids) > limit:
                self._cut[side].add(text)
            known[text] = self._shorten(ids, limit)
        odd = [
            text
            for text in new
            if text in self._cut[side] or text != text.strip() or self._special & {*known[text]}
        ]
        if odd:
            texts = [
                self.tokenizer.decode(
                    known[text], skip_special_tokens=False, clean_up_tokenization_spaces=False
                )
                for text in odd
            ]
            known.update(zip(odd, self._ids(texts), strict=True))

    def _ids(self, texts: list[str]) -> list[list[int]]:
        return self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]

    def _shorten(self, ids: list[int], room: int) -> list[int]:
        if len(ids) <= room:
            return ids
        return ids[len(ids) - room :] if self._left else ids[:room]

    def _fit(self, query: str, document: str) -> tuple[list[int], list[int]]:
        """The ids of a pair, the document cut to the room that the query leaves."""
        first, second = self._queries[query], self._documents[document]
        room = self.layout.room(first, self.window)
        if len(second) > room:
            if room < 1:
                raise ValueError(
                    f"The query {query[:60]!r} fills the window of {self.limit} tokens and leaves "
                    "no room for its document: shorten it, or choose a larger max_length "
                    "(a command takes --max-length with --reranker)."
                )
            self._cut[1].add(document)
            second = self._shorten(second, room)
        return first, second

    def _pad(self, rows: list[tuple[list[int], list[int]]], width: int) -> Arrays:
        """Put pairs together in arrays of (rows, width), short rows filled on the right."""
        layout = self.layout
        batch = {
            name: np.full((len(rows), width), fill, dtype=np.int64)
            for name, fill in layout.pad.items()
        }
        for i, row in enumerate(rows):
            ids = layout.ids(*row)
            batch["input_ids"][i, : len(ids)] = ids
            batch["attention_mask"][i, : len(ids)] = 1
            if "token_type_ids" in batch:
                batch["token_type_ids"][i, : len(ids)] = layout.type_ids(*row)
        return batch
