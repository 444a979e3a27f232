"""Zoo: the BGE models by name, as data. Notebooks, README and loaders read this one table.

Parameters, languages and base models as BAAI's documentation states them
(https://bge-model.com/bge/), sizes of the two largest from the files on their model pages.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Model:
    """One published model.

    Attributes:
        name: on the model hub.
        kind: "embedder" or "reranker".
        flag_class: the class of FlagEmbedding that runs it.
        parameters: in millions.
        base: what it was trained from.
        languages: as published.
        max_length: tokens it can read.
        licence: as its model page states it.
        choose: when to take it.
        runs: False where today's transformers cannot load it.
    """

    name: str
    kind: str
    flag_class: str
    parameters: float
    base: str
    languages: str
    max_length: int
    licence: str
    choose: str
    runs: bool = True

    @property
    def gigabytes(self) -> float:
        """Memory of the weights in half precision: two bytes a parameter."""
        return self.parameters * 2 / 1000


MODELS = (
    Model(
        "BAAI/bge-small-en-v1.5",
        "embedder",
        "FlagModel",
        33.4,
        "BERT small",
        "English",
        512,
        "MIT",
        "a laptop, or very many documents: vectors of 384 numbers",
    ),
    Model(
        "BAAI/bge-base-en-v1.5",
        "embedder",
        "FlagModel",
        109,
        "BERT base",
        "English",
        512,
        "MIT",
        "a good start in English",
    ),
    Model(
        "BAAI/bge-large-en-v1.5",
        "embedder",
        "FlagModel",
        335,
        "BERT large",
        "English",
        512,
        "MIT",
        "English with a GPU",
    ),
    Model(
        "BAAI/bge-m3",
        "embedder",
        "BGEM3FlagModel",
        568,
        "XLM-RoBERTa large",
        "more than 100",
        8192,
        "MIT",
        "other languages, mixed languages, long documents",
    ),
    Model(
        "BAAI/bge-reranker-base",
        "reranker",
        "FlagReranker",
        278,
        "XLM-RoBERTa base",
        "English, Chinese",
        512,
        "MIT",
        "English or Chinese on a small budget",
    ),
    Model(
        "BAAI/bge-reranker-large",
        "reranker",
        "FlagReranker",
        560,
        "XLM-RoBERTa large",
        "English, Chinese",
        512,
        "MIT",
        "English or Chinese with a GPU",
    ),
    Model(
        "BAAI/bge-reranker-v2-m3",
        "reranker",
        "FlagReranker",
        568,
        "BGE-M3",
        "many",
        8192,
        "Apache-2.0",
        "other languages or mixed ones; pairs longer than 512 tokens",
    ),
    Model(
        "BAAI/bge-reranker-v2-gemma",
        "reranker",
        "FlagLLMReranker",
        2510,
        "Gemma 2B",
        "many",
        8192,
        "Apache-2.0",
        "quality before speed, with a large GPU",
    ),
    Model(
        "BAAI/bge-reranker-v2-minicpm-layerwise",
        "reranker",
        "LayerWiseFlagLLMReranker",
        2720,
        "MiniCPM 2B",
        "many",
        2048,
        "Apache-2.0",
        "a large model that can stop after some of its layers",
        runs=False,
    ),
    Model(
        "BAAI/bge-reranker-v2.5-gemma2-lightweight",
        "reranker",
        "LightWeightFlagLLMReranker",
        9240,
        "Gemma 2 9B",
        "many",
        8192,
        "Gemma",
        "the largest; can drop layers and merge tokens",
        runs=False,
    ),
)


def models(kind: str) -> list[Model]:
    """All embedders or all rerankers, smallest first.

    Raises:
        ValueError: kind is neither "embedder" nor "reranker".
    """
    found = [model for model in MODELS if model.kind == kind]
    if not found:
        raise ValueError(f"kind is {kind!r}: say 'embedder' or 'reranker'.")
    return found


def markdown_table(kind: str) -> str:
    """The models of one kind as a Markdown table."""
    lines = [
        "| model | class | parameters | fp16 | languages | tokens | licence | choose it for |",
        "|---|---|---:|---:|---|---:|---|---|",
    ]
    for model in models(kind):
        mark = "" if model.runs else " ¹"
        lines.append(
            f"| {model.name}{mark} | {model.flag_class} | {model.parameters:,.0f} M "
            f"| {model.gigabytes:.2f} GB | {model.languages} | {model.max_length:,} "
            f"| {model.licence} | {model.choose} |"
        )
    if any(not model.runs for model in models(kind)):
        lines += ["", "¹ does not load with transformers 5; it needs an environment with 4.x."]
    return "\n".join(lines)
