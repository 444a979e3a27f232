"""Finding a model: a local folder, the hub's cache on this machine, or the hub itself."""

from __future__ import annotations

import json
import os
from pathlib import Path

TIMEOUT = 5.0
"""Seconds to wait for a first sign of life from the hub."""
OFFLINE_HINT = (
    "check the network, or use the offline profile (RERANK_PROFILE=offline), "
    "which needs nothing but packages"
)
_WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
_TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "sentencepiece.bpe.model", "tokenizer.model")


def find_model(name_or_path: str | Path) -> str:
    """A folder or a hub name that can be loaded now; otherwise one clear sentence.

    Args:
        name_or_path: a local model folder, or a name such as "BAAI/bge-reranker-base".

    Returns:
        The folder on this machine if there is one (the hub's cache included), else the name.

    Raises:
        FileNotFoundError: a path that does not exist, or a model folder without tokenizer.
        ConnectionError: the model is not on this machine and the hub cannot be reached.
    """
    name = str(name_or_path)
    if Path(name).is_dir():
        return _checked(Path(name))
    if isinstance(name_or_path, Path) or name.count("/") != 1 or name.startswith((".", "~")):
        raise FileNotFoundError(f"There is no model folder {name!r}: check the path.")
    cached = _cached(name)
    if cached:
        return str(cached)
    require_hub(f"The model {name!r}")
    return name


def fingerprint(name_or_path: str | Path) -> str:
    """A text that changes when the weights behind a name or in a folder do."""
    found = Path(find_model(name_or_path))
    weights = sorted([*found.glob("*.safetensors"), *found.glob("*.bin")])
    stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in weights]
    return json.dumps([str(found), stats])


def _cached(name: str) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(name, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    return folder if _is_complete(folder) else None


def _is_complete(folder: Path) -> bool:
    """Whether a cached model has its configuration, a tokenizer and all its weights."""
    indexes = [*folder.glob("*.safetensors.index.json"), *folder.glob("*.bin.index.json")]
    if indexes:
        shards = set(json.loads(indexes[0].read_text(encoding="utf-8"))["weight_map"].values())
        weights = all((folder / shard).exists() for shard in shards)
    else:
        weights = any((folder / name).exists() for name in _WEIGHT_FILES)
    return weights and (folder / "config.json").exists() and _has_tokenizer(folder)


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).exists() for name in _TOKENIZER_FILES)


def require_hub(wanted: str) -> None:
    """Raise ConnectionError within seconds if the hub does not answer.

    Args:
        wanted: what is missing, as the beginning of the sentence.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    refusal = f"{wanted} is not on this machine and the hub cannot be reached"
    if constants.HF_HUB_OFFLINE or os.environ.get("HF_DATASETS_OFFLINE") == "1":
        raise ConnectionError(f"{refusal} (offline mode is set): {OFFLINE_HINT}.")
    try:  # any answer will do, a refusal too: the download will say what is wrong
        get_session().head(constants.ENDPOINT, timeout=TIMEOUT)
    except Exception as error:  # its class belongs to the HTTP client, which has changed before
        raise ConnectionError(f"{refusal}: {OFFLINE_HINT}.") from error


def _checked(folder: Path) -> str:
    if not (folder / "config.json").exists():
        raise FileNotFoundError(f"{folder} has no config.json: it is not a model folder.")
    if not _has_tokenizer(folder):
        raise FileNotFoundError(
            f"The model folder {folder} has no tokenizer: save it there with "
            "tokenizer.save_pretrained(folder)."
        )
    return str(folder)


def quiet_libraries() -> None:
    """No bars or notes from transformers: each of our stages shows one bar of its own."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
