"""Finding a model or a data set: a local folder, the hub's cache on this machine, or the hub.

Whatever comes from the hub is downloaded here, file by chosen file, so that everything else loads
from a folder and what can go wrong on the way is said in one sentence.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatch
from pathlib import Path

from .download import did_you_mean, download
from .zoo import row

PICKLE_VARIABLE = "RERANK_ALLOW_PICKLE"
_MODEL_FILES = (".json", ".txt", ".model", ".jinja")
_THAT_DECIDE = (".safetensors", ".bin", ".pt", ".json", ".txt", ".model")
"""Files of a model's folder on which its numbers depend."""
_POINTER = b"version https://git-lfs"
_M3_HEADS = ("colbert_linear.pt", "sparse_linear.pt")
_POOLING_FILE = "1_Pooling/config.json"
_TOKENIZER_FILES = (
    *("tokenizer.json", "vocab.txt", "vocab.json", "sentencepiece.bpe.model", "spiece.model"),
    *("spm.model", "tokenizer.model"),
)
_SHARD = re.compile(r"-\d{5}-of-(\d{5})")


def find_model(name_or_path: str | Path, allow_pickle: bool | None = None) -> str:
    """The folder of a model on this machine, downloaded first if need be.

    Of a model on the hub only the configuration, the tokenizer and the weights in safetensors
    format are fetched. Weights in pickle format (`.bin`, `.pt`) can carry code, and are refused
    unless the reader asks for them.

    Args:
        name_or_path: a local model folder, or a name such as "BAAI/bge-reranker-base".
        allow_pickle: whether weights in pickle format will do where there are no others; by
            default for the models of `zoo.MODELS`, and for others if the environment variable
            RERANK_ALLOW_PICKLE is 1. They are read with torch's weights_only=True.

    Returns:
        The folder, the hub's cache included.

    Raises:
        FileNotFoundError: a path that does not exist, a folder that is no whole model, or a name
            that the hub does not know.
        PermissionError: a gated model, without a token that opens it.
        ValueError: the weights exist in pickle format only.
        ConnectionError: the model is not on this machine, and the hub cannot be reached or the
            download broke off.
    """
    if allow_pickle is None:
        allow_pickle = row(name_or_path) is not None or os.environ.get(PICKLE_VARIABLE) == "1"
    name = str(name_or_path)
    if Path(name).is_dir():
        return _checked(Path(name), allow_pickle)
    if isinstance(name_or_path, Path) or name.count("/") != 1 or name.startswith((".", "~")):
        raise FileNotFoundError(
            f"There is no model folder {name!r}: check the path.{did_you_mean(name)}"
        )
    cached = _cached(name, "model")
    if cached and _is_complete(cached, allow_pickle):
        return str(cached)
    try:
        folder = download(name, "model", lambda files: _model_files(name, files, allow_pickle))
    except ConnectionError:
        if cached and _is_complete(cached, allow_pickle=True):
            raise ValueError(_pickle_sentence(str(cached))) from None
        raise
    return _checked(folder, allow_pickle)


def find_data(name: str, patterns: Sequence[str]) -> Path:
    """The folder of a data set of the hub on this machine, downloaded first if need be.

    Args:
        name: such as "namespace-Pt/msmarco".
        patterns: which files are needed, as patterns such as "data/dev-*"; at least one file is
            expected for each.

    Raises:
        FileNotFoundError: the hub does not know the name, or it has no such files.
        PermissionError, ConnectionError: see `find_model`.
    """

    def choose(files: Iterable[str]) -> list[str]:
        files = list(files)
        lacking = [wish for wish in patterns if not any(fnmatch(file, wish) for file in files)]
        if lacking:
            raise FileNotFoundError(
                f"The data set {name!r} has no file {lacking[0]!r}: its layout has changed; "
                "download it yourself and give the folder."
            )
        return [file for file in files if any(fnmatch(file, wish) for wish in patterns)]

    cached = _cached(name, "dataset", list(patterns))
    if cached and all(_all_shards(cached, pattern) for pattern in patterns):
        return cached
    return download(name, "dataset", choose)


def fingerprint(name_or_path: str | Path) -> str:
    """A text that changes when a model's weights, configuration or tokenizer do."""
    found = Path(find_model(name_or_path))
    files = [path for path in sorted(found.iterdir()) if path.suffix in _THAT_DECIDE]
    stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return json.dumps([str(found), stats])


def _cached(name: str, kind: str, patterns: list[str] | None = None) -> Path | None:
    """The hub's cache of a repository, if there is one; it may lack files."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(name, repo_type=kind, allow_patterns=patterns, local_files_only=True)
        )
    except HFValidationError:
        raise FileNotFoundError(
            f"There is no folder {name!r}, and no name that the hub could know: check the path."
        ) from None
    except LocalEntryNotFoundError as error:
        # It also says so where files are missing that nobody wants here, such as other formats.
        incomplete = getattr(error, "snapshot_path", None)
        return Path(incomplete) if incomplete and kind == "model" else None


def _model_files(name: str, files: Iterable[str], allow_pickle: bool) -> list[str]:
    """What is needed of a model: no second copy of the weights, and no code."""
    files = list(files)
    top = [file for file in files if "/" not in file]
    wanted = [file for file in top if file.endswith(_MODEL_FILES)]
    wanted += [file for file in files if file == _POOLING_FILE]
    known = row(name)
    if known and known.flag_class == "BGEM3FlagModel":  # small, and read with weights_only=True
        wanted += [file for file in top if file in _M3_HEADS]
    weights = [file for file in top if file.endswith(".safetensors")]
    pickled = [file for file in top if file.endswith(".bin") and "training" not in file]
    if not weights and pickled:
        if not allow_pickle:
            raise ValueError(_pickle_sentence(name))
        weights = pickled
    if not weights:
        raise FileNotFoundError(
            f"{name!r} holds no weights in safetensors format: it is not a model that can be "
            "loaded here."
        )
    return wanted + weights


def _pickle_sentence(where: str) -> str:
    return (
        f"{where!r} has its weights in pickle format only, which can run code when it is loaded: "
        f"choose a model with safetensors, or set {PICKLE_VARIABLE}=1 if you trust its author."
    )


def _is_complete(folder: Path, allow_pickle: bool) -> bool:
    """Whether a folder has a configuration, a tokenizer and all the weights of a model."""
    weights = _has_weights(folder, ".safetensors", "model.safetensors")
    if allow_pickle and not weights:
        weights = _has_weights(folder, ".bin", "pytorch_model.bin")
    return weights and (folder / "config.json").exists() and _has_tokenizer(folder)


def _has_weights(folder: Path, suffix: str, single: str) -> bool:
    indexes = list(folder.glob(f"*{suffix}.index.json"))
    if not indexes:
        return (folder / single).exists()
    shards = set(json.loads(indexes[0].read_text(encoding="utf-8"))["weight_map"].values())
    return all((folder / shard).exists() for shard in shards)


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).exists() for name in _TOKENIZER_FILES)


def _all_shards(folder: Path, pattern: str) -> bool:
    """Whether files of this pattern are there, all of them where their names give a number."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    names = [path.relative_to(folder).as_posix() for path in files]
    names = [name for name in names if fnmatch(name, pattern)]
    totals = [int(match[1]) for name in names if (match := _SHARD.search(name))]
    only_one = "-00000-of-" in pattern
    return bool(names) and (only_one or not totals or len(totals) >= max(totals))


def _require_whole(weights: Path) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(weights, framework="np"):
            pass
    except SafetensorError as error:
        raise ValueError(f"{weights} is damaged ({error}): copy or fetch it anew.") from None


def _checked(folder: Path, allow_pickle: bool) -> str:
    if not (folder / "config.json").exists():
        raise FileNotFoundError(f"{folder} has no config.json: it is not a model folder.")
    if not _has_tokenizer(folder):
        raise FileNotFoundError(
            f"The model folder {folder} has no tokenizer: save it there with "
            "tokenizer.save_pretrained(folder)."
        )
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as stream:
            if stream.read(len(_POINTER)) == _POINTER:
                raise FileNotFoundError(
                    f"{path} holds no weights, only where git-lfs has them: run `git lfs pull` in "
                    "that folder."
                )
        _require_whole(path)
    if _is_complete(folder, allow_pickle):
        return str(folder)
    if _is_complete(folder, allow_pickle=True):
        raise ValueError(_pickle_sentence(str(folder)))
    raise FileNotFoundError(
        f"The model folder {folder} has no weights, or not all of them: save them there with "
        "model.save_pretrained(folder)."
    )


def quiet_libraries() -> None:
    """No bars or notes from transformers: each of our stages shows one bar of its own."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
