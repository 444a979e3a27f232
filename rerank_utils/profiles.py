"""Profiles: a collection with the models and the depth to run it with, by name."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from . import bundled
from .collection import Collection
from .loaders import load_beir, load_cwe, load_msmarco
from .zoo import INSTRUCTION

PACKAGED_EMBEDDER = "packaged:all-MiniLM-L6-v2"
PACKAGED_RERANKER = "packaged:cwe-reranker"

_PACKAGED = {
    PACKAGED_EMBEDDER: bundled.minilm_path,
    PACKAGED_RERANKER: bundled.reranker_path,
}


@dataclass(frozen=True)
class Profile:
    """One way to run the course.

    Attributes:
        name: such as "offline".
        load: gives the collection.
        embedder, reranker: a packaged model, a hub name or a folder.
        pooling, instruction: see `embedding.load_embedder`.
        embedder_length, reranker_length: tokens after which a text or a pair is cut.
        split: which queries.
        queries: how many of them; None for all.
        depth: candidates a query that are reranked.
        in_pieces: whether long documents are reranked in pieces, or cut off.
    """

    name: str
    load: Callable[[], Collection]
    embedder: str
    reranker: str
    pooling: str | None = "cls"
    instruction: str | None = None
    embedder_length: int = 512
    reranker_length: int = 512
    split: str = "test"
    queries: int | None = None
    depth: int = 50
    in_pieces: bool = False

    @property
    def folder_name(self) -> str:
        """The profile's name as the name of a folder."""
        kind, _, where = self.name.partition(":")
        return f"{kind}-{Path(where).resolve().name}" if where else kind


OFFLINE = Profile(
    name="offline",
    load=load_cwe,
    embedder=PACKAGED_EMBEDDER,
    pooling="mean",
    reranker=PACKAGED_RERANKER,
    embedder_length=256,
    reranker_length=bundled.MAX_LENGTH,
    split="dev",
    queries=200,
)
MSMARCO = Profile(
    name="msmarco",
    load=load_msmarco,
    embedder="BAAI/bge-base-en-v1.5",
    instruction=INSTRUCTION,
    reranker="BAAI/bge-reranker-large",
    split="dev",
)
MSMARCO_DISTRACTORS = replace(
    MSMARCO, name="msmarco-distractors", load=lambda: load_msmarco(distractors=100_000)
)
PROFILES = {profile.name: profile for profile in (OFFLINE, MSMARCO, MSMARCO_DISTRACTORS)}


def get_profile(name: str | None = None) -> Profile:
    """A profile by name: a key of `PROFILES`, or "beir:" with a set's name or a folder.

    Args:
        name: by default what RERANK_PROFILE says, else "offline". A "beir:" profile uses the
            packaged models, the only ones that are certain to be there.

    Raises:
        ValueError: there is no such profile.
    """
    name = name or os.environ.get("RERANK_PROFILE") or OFFLINE.name
    kind, _, source = name.partition(":")
    if kind == "beir" and source:
        return replace(
            OFFLINE, name=name, load=lambda: load_beir(source), split="test", queries=None
        )
    if name not in PROFILES:
        raise ValueError(
            f"Unknown profile {name!r}: choose {', '.join(PROFILES)}, or beir: with the name of a "
            "BEIR set or a folder, such as beir:scifact."
        )
    return PROFILES[name]


def locate(model: str) -> str:
    """The folder of a packaged model; any other name is returned as it is."""
    if model in _PACKAGED:
        return str(_PACKAGED[model]())
    if model.startswith("packaged:"):
        raise ValueError(f"Unknown model {model!r}: packaged are {', '.join(_PACKAGED)}.")
    return model
