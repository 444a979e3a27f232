"""Zoo: the BGE models by name, as data.

Notebooks, README and loaders read this one table. Parameters, languages, lengths and base models
as BAAI's documentation states them (https://bge-model.com/bge/ and the model pages), sizes of the
two largest from the files on their model pages. Class and pooling as FlagEmbedding's own list of
models has them.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path

INSTRUCTION = "Represent this sentence for searching relevant passages: "
"""What the English BGE v1.5 models want before a query; the blank at its end belongs to it."""

OLD_TRANSFORMERS = "transformers==4.44.2"
"""Where the two rerankers with `runs=False` load: FlagEmbedding's lower bound. Tried with
FlagEmbedding 1.4.2 on tiny random models: 4.44.2 scores with both, 4.57.6 with neither."""


@dataclass(frozen=True)
class Model:
    """One published model.

    Attributes:
        name: on the model hub.
        kind: "embedder" or "reranker".
        flag_class: the class of FlagEmbedding that runs it.
        architecture: what its config.json names.
        parameters: in millions.
        base: what it was trained from.
        languages: as published.
        max_length: tokens it can read.
        licence: as its model page states it.
        choose: when to take it.
        usual_length: tokens it is given unless you say otherwise; FlagEmbedding's own default
            (https://github.com/FlagOpen/FlagEmbedding/issues/932).
        pooling: of an embedder, "cls" or "mean".
        instruction: what an embedder wants before a query.
        runs: False where today's transformers cannot load it.
    """

    name: str
    kind: str
    flag_class: str
    architecture: str
    parameters: float
    base: str
    languages: str
    max_length: int
    licence: str
    choose: str
    usual_length: int = 512
    pooling: str | None = None
    instruction: str | None = None
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
        "BertModel",
        33.4,
        "BERT, 12 layers of 384",
        "English",
        512,
        "MIT",
        "a laptop, or very many documents: vectors of 384 numbers",
        pooling="cls",
        instruction=INSTRUCTION,
    ),
    Model(
        "BAAI/bge-base-en-v1.5",
        "embedder",
        "FlagModel",
        "BertModel",
        109,
        "BERT base",
        "English",
        512,
        "MIT",
        "a good start in English",
        pooling="cls",
        instruction=INSTRUCTION,
    ),
    Model(
        "BAAI/bge-large-en-v1.5",
        "embedder",
        "FlagModel",
        "BertModel",
        335,
        "BERT large",
        "English",
        512,
        "MIT",
        "English with a GPU",
        pooling="cls",
        instruction=INSTRUCTION,
    ),
    Model(
        "BAAI/bge-m3",
        "embedder",
        "BGEM3FlagModel",
        "XLMRobertaModel",
        568,
        "XLM-RoBERTa large",
        "more than 100",
        8192,
        "MIT",
        "other languages, mixed languages, long documents",
        pooling="cls",
    ),
    Model(
        "BAAI/bge-reranker-base",
        "reranker",
        "FlagReranker",
        "XLMRobertaForSequenceClassification",
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
        "XLMRobertaForSequenceClassification",
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
        "XLMRobertaForSequenceClassification",
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
        "GemmaForCausalLM",
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
        "LayerWiseMiniCPMForCausalLM",
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
        "CostWiseGemmaForCausalLM",
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
        lines += ["", f"¹ does not load with transformers 5; seen to run with {OLD_TRANSFORMERS}."]
    return "\n".join(lines)


def find(name: str) -> Model:
    """The model of this name.

    Raises:
        ValueError: the table has no such model; names the nearest.
    """
    if known := row(name):
        return known
    near = nearest(name)
    hint = f"did you mean {' or '.join(near)}?" if near else "zoo.MODELS lists what there is."
    raise ValueError(f"The table has no model {name!r}: {hint}")


def nearest(name: str) -> list[str]:
    """At most three names of the table that look like this one, the likest first."""
    last = {model.name.split("/")[1].lower(): model.name for model in MODELS}
    wanted = name.rstrip("/").split("/")[-1].lower()
    return [last[found] for found in difflib.get_close_matches(wanted, last, 3, cutoff=0.75)]


def row(name_or_path: str | Path) -> Model | None:
    """The model of this name, or None for a folder or a name that is not in the table."""
    return next((model for model in MODELS if model.name == str(name_or_path)), None)


def cannot_load(model: Model, name: str | Path) -> str:
    """What to say of a model that today's transformers cannot load."""
    return (
        f"{name} does not load with transformers 5: FlagEmbedding's {model.flag_class} was "
        "written for early 4.x. Use it in an environment of its own (pip install FlagEmbedding "
        f"{OLD_TRANSFORMERS}), or choose BAAI/bge-reranker-v2-gemma here."
    )
