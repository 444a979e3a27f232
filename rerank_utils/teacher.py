"""The teacher of the bundled reranker: the packaged bi-encoder, tuned, and BM25 beside it.

A bi-encoder learns from few examples: every document of a batch is a negative for all queries but
its own, and comparing two vectors is built in. A cross-encoder has to learn how to compare first,
and learns it from a teacher that gives a score to any pair.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn.functional import cross_entropy, normalize
from tqdm import tqdm

from .descent import Descent, in_order
from .lexical import index_words, score_documents, tokenize
from .training_data import TrainingSet
from .training_folder import half_is_quick

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TEMPERATURE = 0.05
"""Cosines are divided by it, so that a softmax over them can be sharp."""


class BiEncoder:
    """Texts to vectors: the mean of the last layer's tokens, of length 1.

    Args:
        encoder: a BERT, or an MPNet; what of it is trained is the caller's business.
        tokenizer: its tokenizer.
        max_length: tokens of a text that are read.
    """

    def __init__(
        self, encoder: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_length: int
    ):
        self.encoder, self.tokenizer, self.max_length = encoder, tokenizer, max_length

    def __call__(self, texts: list[str]) -> torch.Tensor:
        """(texts, d) float32, with gradients."""
        device = self.encoder.device
        inputs = self.tokenizer(
            texts,
            padding=True,
            truncation=True,
            max_length=self.max_length,
            return_tensors="pt",
        ).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=half_is_quick(device.type)):
            hidden = self.encoder(**inputs).last_hidden_state.float()
        mask = inputs["attention_mask"][..., None].float()
        return normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)

    def in_parts(self, texts: list[str], parts: int = 3) -> torch.Tensor:
        """The same in parts of like length, which saves padding."""
        order = np.argsort([len(text) for text in texts], kind="stable")
        places = np.array_split(order, min(parts, len(order)))
        return in_order([self([texts[i] for i in place]) for place in places], places)

    @torch.inference_mode()
    def embed(self, texts: list[str]) -> np.ndarray:
        """(texts, d) float32, in batches of like length."""
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        vectors = np.zeros((len(texts), self.encoder.config.hidden_size), dtype=np.float32)
        size = 32 if self.encoder.device.type == "cpu" else 512
        with tqdm(total=len(texts), desc="embed") as bar:
            for start in range(0, len(order), size):
                chunk = order[start : start + size]
                vectors[chunk] = self([texts[i] for i in chunk]).cpu().numpy()
                bar.update(len(chunk))
        return vectors

    def loss(self, data: TrainingSet, batch: int, rng: random.Random) -> torch.Tensor:
        """Cross-entropy of finding the answer among all documents of a batch.

        Half of the queries are reports, half sentences. Half as many documents join at random.
        Documents that also answer a query, or may, do not count against it.
        """
        half = batch // 2
        asked = rng.sample(data.reports, half) + rng.sample(data.sentences, half)
        chosen = [rng.choice(sorted(data.queries[i].positives)) for i in asked]
        weaknesses = [document for document in data.ids if document.startswith("CWE-")]
        columns = sorted({*chosen, *rng.sample(weaknesses, half)})
        left = self.in_parts([data.queries[i].text for i in asked])
        right = self.in_parts([data.documents[document] for document in columns])
        target = torch.tensor([columns.index(document) for document in chosen])
        spared = torch.tensor(
            [
                [
                    bool(data.owners[d] & (data.queries[i].positives | data.queries[i].related))
                    for d in columns
                ]
                for i in asked
            ]
        ).scatter(1, target[:, None], False)
        scores = (left @ right.T / TEMPERATURE).masked_fill(spared.to(left.device), -1e9)
        return cross_entropy(scores, target.to(left.device))


class Teacher:
    """Scores every document of the training for a query.

    score = cosine / TEMPERATURE + weight * BM25

    Args:
        data: what is scored.
        queries, documents: (n, d) float32 vectors; their product is the cosine, or the mean of
            those of several bi-encoders.
        weight: of BM25.
    """

    def __init__(
        self, data: TrainingSet, queries: np.ndarray, documents: np.ndarray, weight: float
    ):
        self.queries, self.documents, self.weight = queries, documents, weight
        self.words = tokenize([query.text for query in data.queries])
        self.index = index_words(tokenize(list(data.documents.values())))

    def scores(self, asked: list[int]) -> np.ndarray:
        """(asked, documents) float32."""
        cosines = self.queries[asked] @ self.documents.T
        lexical = np.stack([score_documents(self.index, self.words[i]) for i in asked])
        return cosines / TEMPERATURE + self.weight * lexical


def tune(
    encoder: BiEncoder,
    data: TrainingSet,
    descent: Descent,
    steps: int,
    batch: int,
    rng: random.Random,
) -> None:
    """Train a bi-encoder in place."""
    encoder.encoder.eval()  # no dropout: drawing it takes more than half of a step on a CPU
    bar = tqdm(range(steps), desc="teacher")
    for _ in bar:
        loss = encoder.loss(data, batch, rng)
        descent.step([loss])
        bar.set_postfix(loss=f"{loss.item():.3f}")
