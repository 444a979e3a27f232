"""Opening: what is looked at before a model is loaded, so that what cannot be opened says why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from . import zoo


def read_architecture(folder: str | Path, name: str | Path) -> str:
    """The first architecture that a model's config.json names, or an empty text.

    Args:
        folder: what `hub.find_model` gave.
        name: what the user gave, for the sentences.

    Raises:
        ValueError: config.json is no JSON object, or the model wants code of its own to be run,
            or today's transformers cannot load it.
    """
    path = Path(folder) / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        kind = (config.get("architectures") or [""])[0]
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path} is not a model's configuration.") from error
    _require_loadable(kind, name)
    _require_known(config, name)
    return kind


def require_head(folder: Path, kind: str) -> None:
    """Refuse a model without a trained classification head: its scores would be random."""
    from safetensors import safe_open

    trained = kind.endswith("ForSequenceClassification")
    names: set[str] = set()
    for weights in folder.glob("*.safetensors"):  # several where the model is sharded
        with safe_open(weights, framework="np") as tensors:
            names |= set(tensors.keys())
    if names:
        trained = trained and any(name.startswith(("classifier", "score")) for name in names)
    if not trained:
        raise ValueError(
            f"{folder} has no trained scoring head ({kind or 'no architecture named'})"
            ": it is not a reranker; give a cross-encoder such as BAAI/bge-reranker-base."
        )


def require_one_number(config: Any, name: str | Path) -> None:
    """Refuse a classifier of several classes: a reranker gives one number for a pair."""
    if config.num_labels != 1:
        raise ValueError(
            f"{name} gives {config.num_labels} numbers for a pair, a reranker gives one: choose a "
            "reranker."
        )


def _require_loadable(kind: str, name: str | Path) -> None:
    for model in zoo.MODELS:
        if not model.runs and kind == model.architecture:
            raise ValueError(zoo.cannot_load(model, name))


def _require_known(config: dict[str, Any], name: str | Path) -> None:
    """Refuse a model that transformers could only load by running code from its folder."""
    from transformers import CONFIG_MAPPING

    if "auto_map" in config and config.get("model_type") not in CONFIG_MAPPING:
        raise ValueError(
            f"{name} can only be loaded by running program code that comes with it "
            "(trust_remote_code), which is never done here: choose a model of a known architecture."
        )
