"""A cross-encoder that begins as the comparison of two vectors.

What a bi-encoder knows of a text is the mean of its last layer's tokens, and a cosine compares two
such means. A head on the first token of that same layer stands beside the tokens and not above
them: it has nothing to compare yet, and has to grow a comparison out of lower layers. So this
cross-encoder has one layer more than the encoder, and learns in two phases.

1. The encoder alone, by `comparison_loss`: it reads query and document in one pass, as a
   cross-encoder does, and learns that the means of the two halves still compare as the means of
   the texts alone do. It also learns to mark each token with the side it is on.
2. `set_comparing_layer` sets the further layer so that it does that comparison itself: the first
   token's attention takes the two means, the feed-forward part multiplies them. From here on this
   is an ordinary cross-encoder, all of which is trained; the loss of phase 1 stays beside its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.functional import cosine_similarity, kl_div, log_softmax, normalize, softmax

from .descent import in_order
from .encoder import first_token_logits, read_layers

if TYPE_CHECKING:
    import numpy as np
    from transformers import BatchEncoding, BertForSequenceClassification, PreTrainedModel
    from transformers.models.bert.modeling_bert import BertAttention, BertLayer

SHARPNESS = 20.0
"""Cosines are multiplied by it before the softmax, as the teacher's are."""
SIDE_WEIGHT = 0.5
"""Of telling the two texts apart, in the loss."""
STEEPNESS = 2.0
"""How sharply attention prefers the tokens of a side: it weighs a token with exp(+-2 side)."""
GAIN = 50.0
"""How large the two means are written beside the first token's own state, which is in their way."""
BEND = 0.3
"""Small enough that GELU(x) + GELU(-x) is nearly 0.8 x^2 for the BEND-fold of what comes in."""
HEIGHT, MIDDLE = 10.0, 0.35
"""The last state holds HEIGHT * (cosine - MIDDLE), in two coordinates of opposite sign."""


@dataclass(frozen=True)
class Part:
    """Some pairs after the encoder.

    Args:
        place: where in the step these pairs stand.
        hidden: (pairs, tokens, d) float32.
        mask: see `encoder.read_layers`.
        query, document: (pairs, tokens) bool: which tokens belong to which text.
    """

    place: np.ndarray
    hidden: torch.Tensor
    mask: torch.Tensor
    query: torch.Tensor
    document: torch.Tensor


def read_pairs(
    encoder: PreTrainedModel, place: np.ndarray, inputs: BatchEncoding, layers: int
) -> Part:
    """Pairs, as `descent.length_parts` gives them, through the first so many layers of a BERT."""
    hidden, mask = read_layers(encoder, layers, **inputs)
    real, second = inputs["attention_mask"].bool(), inputs["token_type_ids"].bool()
    return Part(place, hidden.float(), mask, real & ~second, real & second)


def pair_logits(model: BertForSequenceClassification, parts: Sequence[Part]) -> torch.Tensor:
    """(pairs,) logits of the last layer and the head."""
    found = [first_token_logits(model, part.hidden, part.mask).float() for part in parts]
    return in_order(found, [part.place for part in parts])


def comparison_loss(
    parts: Sequence[Part], side: nn.Linear, aim: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """How far the encoder is from ranking as the teacher does, by cosines within one pass.

    Half of it is the KL divergence from the teacher of the cosine of the two means, half that of
    the means as attention will take them, each token weighed by its mark. Added to it, with
    SIDE_WEIGHT, is the squared error of the marks.

    Args:
        parts: all pairs of a step.
        side: reads the mark of a token: -1 in a query, 1 in a document.
        aim: (groups, group) scores of the teacher.

    Returns:
        The loss, and the (groups, group) scores by which the plain means rank.
    """
    marked = sum(len(part.place) / aim.numel() * _side_error(part, side) for part in parts)
    places = [part.place for part in parts]
    plain, weighed = (
        SHARPNESS * in_order([cosine_similarity(*means) for means in found], places).view_as(aim)
        for found in (
            [plain_means(part) for part in parts],
            [weighed_means(part, side) for part in parts],
        )
    )
    ranked = (divergence(plain, aim) + divergence(weighed, aim)) / 2
    return ranked + SIDE_WEIGHT * marked, plain


def divergence(scores: torch.Tensor, aim: torch.Tensor) -> torch.Tensor:
    """KL divergence of the softmax over a group's scores from the teacher's, both (groups, n)."""
    return kl_div(log_softmax(scores, -1), softmax(aim, -1), reduction="batchmean")


def plain_means(part: Part) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean states of query and document, (pairs, d) each."""
    weights = [where.float() / where.sum(1, keepdim=True) for where in (part.query, part.document)]
    return tuple(torch.einsum("pt,ptd->pd", share, part.hidden) for share in weights)


def weighed_means(part: Part, side: nn.Linear) -> tuple[torch.Tensor, torch.Tensor]:
    """The same, with all tokens of a pair weighed by their mark."""
    outside = ~(part.query | part.document)
    marks = STEEPNESS * side(part.hidden).squeeze(-1)
    weights = [softmax(sign * marks.masked_fill(outside, -sign * 1e9), 1) for sign in (-1, 1)]
    return tuple(torch.einsum("pt,ptd->pd", share, part.hidden) for share in weights)


def _side_error(part: Part, side: nn.Linear) -> torch.Tensor:
    """Squared error of the marks; both sides count alike, however long they are."""
    marks = side(part.hidden).squeeze(-1)
    left, right = marks[part.query] + 1, marks[part.document] - 1
    return (left.square().mean() + right.square().mean()) / 2


@torch.no_grad()
def set_side(side: nn.Linear, parts: Sequence[Part]) -> None:
    """Set what reads the marks to the least squares of these pairs."""
    states = torch.cat(
        [part.hidden[where] for part in parts for where in (part.query, part.document)]
    )
    sizes = [int(where.sum()) for part in parts for where in (part.query, part.document)]
    signs = torch.tensor([-1.0, 1.0] * len(parts)).repeat_interleave(torch.tensor(sizes))
    signs = signs.to(states.device)
    weight = torch.where(signs > 0, 1 / (signs > 0).sum(), 1 / (signs < 0).sum())[:, None] / 2
    mean = (weight * states).sum(0)
    away = states - mean
    square = (weight * away).T @ away
    square += 1e-3 * square.diagonal().mean() * torch.eye(len(mean), device=mean.device)
    side.weight[0] = torch.linalg.solve(square, (weight * away).T @ signs)
    side.bias[0] = -side.weight[0] @ mean


@torch.no_grad()
def set_comparing_layer(
    model: BertForSequenceClassification,
    side: nn.Linear,
    parts: Sequence[Part],
    aim: torch.Tensor,
    seed: int = 0,
) -> None:
    """Set last layer, pooler and head so that the logit is a cosine of the two `weighed_means`.

    The first half of the heads takes the mean of the query, the other half that of the document;
    each keeps the directions in which these means differ most. Attention writes one beside the
    other, and its norm brings them to one length. The feed-forward part multiplies them,

        a b = ((a + b)^2 - (a - b)^2) / 4

    with squares made of GELU(x) + GELU(-x). Some of its units are free for what training finds.

    Args:
        model: of an even number of heads; the last layer's weights are overwritten.
        side: reads the mark of a token.
        parts: pairs by which the scales are chosen.
        aim: (groups, group) scores of the teacher for them.
        seed: of what is small and random.
    """
    random = torch.Generator().manual_seed(seed)
    last = model.bert.encoder.layer[-1]
    halves = [weighed_means(part, side) for part in parts]
    query, document = (torch.cat(means) for means in zip(*halves, strict=True))
    directions = _directions(torch.cat([query, document]), random)
    ratio = document.norm(dim=1).mean() / query.norm(dim=1).mean()
    _set_attention(last.attention, side, directions, ratio, random)
    _set_product(last, len(directions), random)
    _set_head(model, len(directions), random)
    logits = pair_logits(model, parts).view_as(aim)
    ours, theirs = (x - x.mean(1, keepdim=True) for x in (logits, aim))
    model.classifier.weight.mul_(((ours * theirs).sum() / ours.square().sum()).clamp(min=0.05))


def _directions(means: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    """(d / 2 - 1, d): where these vectors are largest, turned at random among themselves."""
    kept = means.shape[1] // 2 - 1
    unit = normalize(means, dim=-1)
    largest = torch.linalg.eigh(unit.T @ unit)[1].flip(1)[:, :kept].T
    turn = torch.linalg.qr(torch.randn(kept, kept, generator=random))[0]
    return turn.to(largest.device) @ largest


def _small(linear: nn.Linear, scale: float, random: torch.Generator) -> None:
    linear.weight.copy_(scale * torch.randn(linear.weight.shape, generator=random))
    linear.bias.zero_()


def _set_attention(
    attention: BertAttention,
    side: nn.Linear,
    directions: torch.Tensor,
    ratio: torch.Tensor,
    random: torch.Generator,
) -> None:
    heads, size = attention.self.num_attention_heads, attention.self.attention_head_size
    kept, half = len(directions), heads * size // 2
    first = torch.arange(0, heads * size, size)  # of each head's coordinates
    sign = torch.ones(heads, 1, device=side.weight.device)
    sign[: heads // 2] = -1
    _small(attention.self.query, 0.002, random)
    _small(attention.self.key, 0.002, random)
    attention.self.query.bias[first] = size**0.5
    attention.self.key.weight[first] = STEEPNESS * sign * side.weight
    _small(attention.self.value, 0.0, random)
    attention.self.value.weight[:kept] = ratio * directions
    attention.self.value.weight[half : half + kept] = directions
    attention.output.dense.weight.copy_(GAIN * torch.eye(heads * size))
    attention.output.dense.bias.zero_()
    _plain_norm(attention.output.LayerNorm)
    attention.output.LayerNorm.weight[[kept, half + kept]] = 0  # room for the score


def _set_product(layer: BertLayer, kept: int, random: torch.Generator) -> None:
    into, out = layer.intermediate.dense, layer.output.dense
    half = out.out_features // 2
    _small(into, 0.02, random)
    _small(out, 0.0, random)
    product = HEIGHT / (kept * 4 * BEND**2 * 0.8)
    at = torch.arange(kept)
    for unit, (one, other) in enumerate(((1, 1), (-1, -1), (1, -1), (-1, 1))):
        units = 4 * at + unit
        into.weight[units] = 0
        into.weight[units, at] = one * BEND
        into.weight[units, half + at] = other * BEND
        for row, sign in ((kept, 1), (half + kept, -1)):
            out.weight[row, units] = sign * one * other * product
            out.bias[row] = -sign * HEIGHT * MIDDLE
    _plain_norm(layer.output.LayerNorm)


def _set_head(model: BertForSequenceClassification, kept: int, random: torch.Generator) -> None:
    pooler, head = model.bert.pooler.dense, model.classifier
    half = pooler.in_features // 2
    sign = torch.randint(2, (pooler.out_features,), generator=random).to(head.weight) * 2 - 1
    _small(pooler, 0.005, random)
    pooler.weight[:, kept] += 0.05 * sign
    pooler.weight[:, half + kept] -= 0.05 * sign
    head.weight[0] = SHARPNESS / pooler.out_features * sign
    head.bias.zero_()


def _plain_norm(norm: nn.LayerNorm) -> None:
    norm.weight.fill_(1)
    norm.bias.zero_()
