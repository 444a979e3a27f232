"""Stage 1 of the training: encoders, tuned once and then kept in the folder."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from .adapters import adapt, load_trained, trained
from .bundled import minilm_path, untrained_reranker
from .descent import Descent
from .mpnet import mpnet_path
from .teacher import BiEncoder, Teacher, tune
from .training_data import TrainingSet
from .training_folder import save_state, saving
from .training_recipe import Recipe

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


class Encoders:
    """The encoders of a recipe, which make its teacher.

    Args:
        recipe: how many, of what, and how they are tuned.
        output: where they are kept.
        data: what they are tuned on.
        device: where they are.
    """

    def __init__(self, recipe: Recipe, output: Path, data: TrainingSet, device: torch.device):
        self.recipe, self.output, self.data, self.device = recipe, output, data, device

    @property
    def base(self) -> Path:
        """The folder of the model that is tuned."""
        return minilm_path() if self.recipe.encoder == "minilm" else mpnet_path()

    def fresh(self, number: int = 0) -> PeftModel:
        """The base with an adapter; of MiniLM a whole reranker, with a head that is new.

        Args:
            number: another one has other random weights.
        """
        from transformers import AutoModel

        torch.manual_seed(self.recipe.seed * self.recipe.teachers + number)
        if self.recipe.encoder == "minilm":
            return self.fresh_reranker()
        base = AutoModel.from_pretrained(self.base, dtype=torch.float32)
        return adapt(base.to(self.device), self.recipe.rank, self.recipe.alpha)

    def fresh_reranker(self) -> PeftModel:
        """MiniLM with an adapter and a new head, which alone are trained."""
        base = untrained_reranker().to(self.device)
        return adapt(base, self.recipe.rank, self.recipe.alpha, head=("pooler", "classifier"))

    def tuned(self, number: int = 0) -> PeftModel:
        """A fresh model whose encoder is tuned as a bi-encoder; tuned once, then kept.

        Args:
            number: which of the teacher's encoders.
        """
        recipe, saved = self.recipe, self.output / f"encoder-{number}.pt"
        model = self.fresh(number)
        if saved.exists():
            load_trained(model, torch.load(saved, map_location=self.device), saved)
            return model
        descent = Descent(model, recipe.tune_rate, recipe.tune_steps, warmup=10)
        rng = random.Random(recipe.seed * recipe.teachers + number)
        encoder = self.bi_encoder(model)
        tune(encoder, self.data, descent, recipe.tune_steps, recipe.tune_batch, rng)
        save_state(trained(model), saved)
        return model

    def bi_encoder(self, model: PeftModel) -> BiEncoder:
        """The encoder of a model, head left aside."""
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(self.base)
        return BiEncoder(_encoder(model.base_model.model), tokenizer, self.recipe.max_length)

    def teacher(self) -> Teacher:
        """The mean of the tuned encoders, with BM25 beside it."""
        found = [self._vectors(number) for number in range(self.recipe.teachers)]
        queries, documents = (
            np.concatenate([vectors[name] for vectors in found], 1)
            for name in ("queries", "documents")
        )
        return Teacher(self.data, queries / len(found), documents, self.recipe.bm25_weight)

    def _vectors(self, number: int) -> dict[str, np.ndarray]:
        """What a tuned encoder makes of all queries and documents."""
        saved = self.output / f"vectors-{number}.pt"
        if not saved.exists():
            encoder = self.bi_encoder(self.tuned(number))
            vectors = {
                "queries": encoder.embed([query.text for query in self.data.queries]),
                "documents": encoder.embed(list(self.data.documents.values())),
            }
            save_state(vectors, saved)
        return torch.load(saved, weights_only=False)

    def write(self) -> Path:
        """The first tuned encoder as a model for `load_embedder`.

        Returns:
            Its folder, whole. It says that pooling is "mean" and a text has `max_length` tokens.
        """
        from transformers import AutoTokenizer

        folder, fresh = self.output / "embedder", self.output / "embedder.writing"
        if not folder.exists():
            whole = self.tuned().merge_and_unload()
            shutil.rmtree(fresh, ignore_errors=True)
            with saving(folder, "The embedder"):
                _encoder(whole).save_pretrained(fresh)
                length = self.recipe.max_length
                tokenizer = AutoTokenizer.from_pretrained(self.base, model_max_length=length)
                tokenizer.save_pretrained(fresh)
                shutil.copytree(self.base / "1_Pooling", fresh / "1_Pooling")
                fresh.replace(folder)
        return folder


def _encoder(model: PreTrainedModel) -> PreTrainedModel:
    """A model without the head that a reranker has."""
    return getattr(model, "bert", model)
