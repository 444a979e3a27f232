"""A cross-encoder's logit with no work for tokens that the score does not see."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.functional import softmax
from transformers import PreTrainedModel

FAMILIES = {
    "BertForSequenceClassification",
    "RobertaForSequenceClassification",
    "XLMRobertaForSequenceClassification",
}


class FirstTokenScorer(nn.Module):
    """The logit of a BERT-like cross-encoder, its last layer computed for the first token only.

    The score is read off the first token. In the last layer the other tokens matter as keys and
    values alone; their queries, their attention and their feed-forward part are never used.
    Keys and values need no product with their weights for each token either, since

        q . (W x + b) = (W^T q) . x + q . b        the same q . b for every token: softmax drops it
        sum a (W x + b) = W (sum a x) + b          the weights a sum to 1

    so that the last layer costs next to nothing. The numbers are the same up to rounding.

    Args:
        model: see `supports`.
    """

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model

    @staticmethod
    def supports(model: nn.Module) -> bool:
        """Whether this is a family whose layers are known here."""
        known = type(model).__name__ in FAMILIES and not model.config.is_decoder
        if not (known and model.config._attn_implementation in ("sdpa", "eager")):
            return False
        last = model.base_model.encoder.layer[-1].attention.self
        # their weights are used by themselves, without what may stand beside them, such as adapters
        return type(last.key) is type(last.value) is nn.Linear

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """(rows,) logits of (rows, tokens) inputs, padded on the right.

        Without padding leave the attention mask out: attention is quicker then.
        """
        for state in self.states(input_ids, attention_mask, token_type_ids):  # noqa: B007
            pass  # one at a time: memory holds no more
        return self.head(state)

    def states(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
    ) -> Iterator[torch.Tensor]:
        """What the embeddings and then each layer make of them, (rows, tokens, d).

        Of the last layer it is the first token's, (rows, 1, d).
        """
        base = self.model.base_model
        hidden = base.embeddings(input_ids=input_ids, token_type_ids=token_type_ids)
        mask = None
        if attention_mask is not None:  # what is added to the scores of (rows, heads, from, to)
            mask = (attention_mask[:, None, None] == 0) * torch.finfo(hidden.dtype).min
            mask = mask.to(hidden.dtype)
        yield hidden
        *layers, last = base.encoder.layer
        for layer in layers:
            hidden = layer(hidden, mask)
            yield hidden
        yield _first_token(last, hidden, mask)

    def head(self, first: torch.Tensor) -> torch.Tensor:
        """(rows,) logits of the last layer's first token, (rows, 1, d)."""
        pooler = self.model.base_model.pooler
        return self.model.classifier(first if pooler is None else pooler(first)).view(-1)


def _first_token(layer: nn.Module, hidden: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """The layer's output at the first position, (rows, 1, d), of its input (rows, tokens, d)."""
    attention = layer.attention.self
    heads, size = attention.num_attention_heads, attention.attention_head_size
    rows, _, width = hidden.shape
    first = hidden[:, :1]
    query = attention.query(first).view(rows, heads, 1, size) * attention.scaling
    key_weight = attention.key.weight.view(heads, size, width)
    scores = (query @ key_weight).squeeze(2) @ hidden.transpose(1, 2)  # (rows, heads, tokens)
    if mask is not None:
        scores = scores + mask[:, 0]
    mean = softmax(scores, -1) @ hidden  # (rows, heads, d)
    value_weight = attention.value.weight.view(heads, size, width)
    context = (mean.unsqueeze(2) @ value_weight.transpose(1, 2)).reshape(rows, 1, heads * size)
    seen = layer.attention.output(context + attention.value.bias, first)
    return layer.feed_forward_chunk(seen)
