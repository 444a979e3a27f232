"""LLM rerankers: a causal language model whose logit for "Yes" is the score.

A FlagLLMReranker (BAAI/bge-reranker-v2-gemma) reads

    <bos>A: {query} \n B: {document} \n Given a query A and a passage B, determine whether ...

and its score is the logit of "Yes" as the next token. A language model gives logits for every
token of the text and every word of its vocabulary: for Gemma 256,000 numbers a token. The score
sees those of the last token, so no others are computed here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import numpy as np

from .batching import Arrays
from .pairs import Layout, PairEncoder

if TYPE_CHECKING:
    import torch
    from FlagEmbedding import FlagLLMReranker

PROMPT = (
    "Given a query A and a passage B, determine whether the passage contains an answer to the "
    "query by providing a prediction of either 'Yes' or 'No'."
)
"""What FlagLLMReranker asks when it is given no prompt; it keeps the text inside a method."""
SEPARATOR = "\n"


def require_yes(reranker: FlagLLMReranker, name: str) -> None:
    """Raise ValueError if the tokenizer has no token "Yes": the score would be another word's."""
    ids = reranker.tokenizer("Yes", add_special_tokens=False)["input_ids"]
    if len(ids) != 1 or ids[0] == reranker.tokenizer.unk_token_id:
        raise ValueError(
            f"The tokenizer of {name} has no token 'Yes', whose logit is the score of an LLM "
            "reranker: choose a model such as BAAI/bge-reranker-v2-gemma."
        )


class PromptEncoder(PairEncoder):
    """Token ids of `<bos>query \\n document \\n prompt`, as FlagLLMReranker builds them.

    The query may have `query_max_length` tokens (by default 3/4 of `max_length`), the document
    `max_length`; then the document is cut until all but the last separator fits into
    `max_length` and the tokens of separator and prompt.

    Args:
        reranker: a FlagLLMReranker; its instructions ("A: " and "B: ") are in the texts already.
    """

    def __init__(self, reranker: FlagLLMReranker):
        super().__init__(reranker)
        _, _, behind = self.layout.special  # separator and prompt, which Layout.room counts too
        self.window = self.limit + 2 * len(behind)

    def _read_layout(self, reranker: FlagLLMReranker) -> Layout:
        tokenizer = reranker.tokenizer
        separator, prompt = self._ids([SEPARATOR, reranker.prompt or PROMPT])
        start = tokenizer.bos_token_id
        first = [] if start in (None, tokenizer.pad_token_id) else [start]
        special = (first, separator, separator + prompt)
        pad = {"input_ids": tokenizer.pad_token_id, "attention_mask": 0}
        return Layout(special, ([], [], [], 0, 0), (first, separator + separator + prompt), pad)

    def _read(
        self, known: dict[str, list[int]], texts: Iterable[str], limit: int, side: int
    ) -> None:
        new = [text for text in dict.fromkeys(texts) if text not in known]
        for text, ids in zip(new, self._ids(new) if new else [], strict=True):
            if len(ids) > limit:
                self._cut[side].add(text)
            known[text] = self._shorten(ids, limit)

    def _pad(self, rows: list[tuple[list[int], list[int]]], width: int) -> Arrays:
        """Filled on the left, so that each row ends with its prompt."""
        batch = {
            name: np.full((len(rows), width), fill, dtype=np.int64)
            for name, fill in self.layout.pad.items()
        }
        for i, row in enumerate(rows):
            ids = self.layout.ids(*row)
            batch["input_ids"][i, width - len(ids) :] = ids
            batch["attention_mask"][i, width - len(ids) :] = 1
        return batch


def open_llm(reranker: FlagLLMReranker, device: str) -> Callable[[Arrays], torch.Tensor]:
    """From a batch padded on the left to the (rows,) logits of "Yes" as the next token."""
    import torch

    model = reranker.model.to(device).eval()

    def forward(batch: Arrays) -> torch.Tensor:
        inputs = {name: torch.from_numpy(ids).to(device) for name, ids in batch.items()}
        outputs = model(**inputs, logits_to_keep=1, output_hidden_states=False, use_cache=False)
        return outputs.logits[:, -1, reranker.yes_loc]

    return forward
