"""Opening: what is looked at before a model is loaded, so that what cannot be opened says why."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from . import zoo


@contextmanager
def nearest_names(name_or_path: str | Path) -> Iterator[None]:
    """Where a model is not found, say which names of the table look like the one that was given."""
    try:
        yield
    except OSError as error:
        near = zoo.nearest(str(name_or_path))
        if not near or zoo.row(name_or_path) or Path(name_or_path).exists():
            raise
        kind = ConnectionError if isinstance(error, ConnectionError) else FileNotFoundError
        raise kind(f"{error} Did you mean {' or '.join(near)}?") from error


def read_config(where: str, name: str | Path) -> dict[str, Any]:
    """The config.json of a folder or a hub name, after the refusal of what must not be run.

    Args:
        where: what `hub.find_model` gave.
        name: what the user gave, for the sentences.

    Raises:
        FileNotFoundError: the folder holds no weights.
        ValueError: config.json is no JSON object, or the model wants code of its own to be run,
            or today's transformers cannot load it.
    """
    folder = Path(where)
    if folder.is_dir():
        if not any([*folder.glob("*.safetensors"), *folder.glob("*.bin")]):
            raise FileNotFoundError(f"The model folder {folder} has no weights (*.safetensors).")
        try:
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            config.get("architectures")
        except (ValueError, AttributeError) as error:
            raise ValueError(f"{folder / 'config.json'} is not a model's configuration.") from error
    else:
        from transformers import PretrainedConfig

        config = PretrainedConfig.get_config_dict(where)[0]
    _require_loadable(architecture(config), name)
    _require_known(config, name)
    return config


def architecture(config: dict[str, Any]) -> str:
    """The first architecture that a config.json names, or an empty text."""
    return (config.get("architectures") or [""])[0]


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
