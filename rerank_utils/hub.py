"""Finding a model or a data set: a local folder, the hub's cache on this machine, or the hub.

Whatever comes from the hub is downloaded here, file by chosen file, so that everything else loads
from a folder and what can go wrong on the way is said in one sentence.
"""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

TIMEOUT = 5.0
"""Seconds to wait for a first sign of life from the hub."""
OFFLINE_HINT = (
    "check the network, or use the offline profile (RERANK_PROFILE=offline), "
    "which needs nothing but packages"
)
PICKLE_VARIABLE = "RERANK_ALLOW_PICKLE"
_MODEL_FILES = (".json", ".txt", ".model", ".jinja")
_POOLING_FILE = "1_Pooling/config.json"
_TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "sentencepiece.bpe.model", "tokenizer.model")
_SHARD = re.compile(r"-\d{5}-of-(\d{5})")


def find_model(name_or_path: str | Path, allow_pickle: bool | None = None) -> str:
    """The folder of a model on this machine, downloaded first if need be.

    Of a model on the hub only the configuration, the tokenizer and the weights in safetensors
    format are fetched. Weights in pickle format (`.bin`, `.pt`) can carry code, and are refused
    unless the reader asks for them.

    Args:
        name_or_path: a local model folder, or a name such as "BAAI/bge-reranker-base".
        allow_pickle: whether weights in pickle format will do where there are no others; by
            default only if the environment variable RERANK_ALLOW_PICKLE is 1.

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
        allow_pickle = os.environ.get(PICKLE_VARIABLE) == "1"
    name = str(name_or_path)
    if Path(name).is_dir():
        return _checked(Path(name), allow_pickle)
    if isinstance(name_or_path, Path) or name.count("/") != 1 or name.startswith((".", "~")):
        raise FileNotFoundError(f"There is no model folder {name!r}: check the path.{_like(name)}")
    cached = _cached(name, "model")
    if cached and _is_complete(cached, allow_pickle):
        return str(cached)
    try:
        folder = _download(name, "model", lambda files: _model_files(name, files, allow_pickle))
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
    return _download(name, "dataset", choose)


def fingerprint(name_or_path: str | Path) -> str:
    """A text that changes when the weights behind a name or in a folder do."""
    found = Path(find_model(name_or_path))
    weights = sorted([*found.glob("*.safetensors"), *found.glob("*.bin")])
    stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in weights]
    return json.dumps([str(found), stats])


def _cached(name: str, kind: str, patterns: list[str] | None = None) -> Path | None:
    """The hub's cache of a repository, if there is one; it may lack files."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(name, repo_type=kind, allow_patterns=patterns, local_files_only=True)
        )
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
    weights = [file for file in top if file.endswith(".safetensors")]
    pickled = [file for file in top if file.endswith((".bin", ".pt")) and "training" not in file]
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


def _checked(folder: Path, allow_pickle: bool) -> str:
    if not (folder / "config.json").exists():
        raise FileNotFoundError(f"{folder} has no config.json: it is not a model folder.")
    if not _has_tokenizer(folder):
        raise FileNotFoundError(
            f"The model folder {folder} has no tokenizer: save it there with "
            "tokenizer.save_pretrained(folder)."
        )
    if _is_complete(folder, allow_pickle):
        return str(folder)
    if _is_complete(folder, allow_pickle=True):
        raise ValueError(_pickle_sentence(str(folder)))
    raise FileNotFoundError(
        f"The model folder {folder} has no weights, or not all of them: save them there with "
        "model.save_pretrained(folder)."
    )


def _download(name: str, kind: str, choose: Callable[[Iterable[str]], list[str]]) -> Path:
    """Fetch the chosen files of a repository into the hub's cache, with one bar."""
    from huggingface_hub import HfApi, constants, snapshot_download

    what = f"The {'data set' if kind == 'dataset' else 'model'} {name!r}"
    missing = f"{what} is not on this machine and the hub cannot be reached"
    if constants.HF_HUB_OFFLINE or os.environ.get("HF_DATASETS_OFFLINE") == "1":
        raise ConnectionError(f"{missing} (offline mode is set): {OFFLINE_HINT}.")
    with _one_sentence(what, name, f"{missing}: {OFFLINE_HINT}."):
        info = _within(
            1.5 * TIMEOUT, lambda: HfApi().repo_info(name, repo_type=kind, timeout=TIMEOUT)
        )
    files = choose([file.rfilename for file in info.siblings or []])
    broken = (
        f"The download of {what[0].lower()}{what[1:]} broke off: check the network and run the "
        "same command again; files that arrived whole are kept."
    )
    with _quiet_hub(), _bar(f"download {name}") as bar, _one_sentence(what, name, broken):
        folder = snapshot_download(
            name,
            repo_type=kind,
            allow_patterns=files,
            etag_timeout=TIMEOUT,
            tqdm_class=bar,
        )
    return Path(folder)


def _within(seconds: float, ask: Callable[[], Any]) -> Any:
    """The answer of `ask`, or TimeoutError: a name look-up, or one address after the other, can
    take longer than the time-out that each single attempt is given."""
    answers: list[Any] = []
    errors: list[Exception] = []

    def work() -> None:
        try:
            answers.append(ask())
        except Exception as error:  # handed to the caller's thread
            errors.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not answers:
        raise TimeoutError(f"no answer in {seconds:.0f} s")
    return answers[0]


@contextmanager
def _one_sentence(what: str, name: str, unreachable: str) -> Iterator[None]:
    """The errors of the hub's library as one of Python's own, with one sentence."""
    from huggingface_hub import constants, errors

    try:
        yield
    except errors.HFValidationError:
        raise FileNotFoundError(f"{what} has no name that the hub could know: check it.") from None
    except (errors.HTTPError, OSError, RuntimeError, ValueError) as error:
        # HTTPError: all that the HTTP client raises. ValueError: an answer that no hub would give.
        if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__:
            error = error.__cause__  # it wraps what the hub said
        response = getattr(error, "response", None)
        status = response.status_code if response is not None else None
        if isinstance(error, errors.GatedRepoError):
            page = f"{constants.ENDPOINT}/{name}".replace("/datasets/", "/")
            raise PermissionError(
                f"{what} is gated, and you have no access yet: accept its terms on {page}, then "
                "log in with `hf auth login` or set HF_TOKEN to a token of that account."
            ) from None
        if isinstance(error, errors.RepositoryNotFoundError):
            raise FileNotFoundError(
                f"{what} does not exist on the hub, or is private: check the spelling.{_like(name)}"
            ) from None
        if status in (401, 403):
            raise PermissionError(
                f"{what}: the hub refused the token ({status}): log in again with `hf auth login`, "
                "or correct HF_TOKEN."
            ) from None
        if status is not None:
            raise ConnectionError(
                f"{what} cannot be fetched, because the hub answered with error {status}: try "
                "again later, or use the offline profile (RERANK_PROFILE=offline)."
            ) from None
        if isinstance(error, OSError) and error.errno and not isinstance(error, ConnectionError):
            raise  # a full disk, for example, says so itself
        raise ConnectionError(unreachable) from error


def _like(name: str) -> str:
    """A hint at names of the zoo that look like this one, or nothing."""
    from .zoo import MODELS

    short = {model.name.split("/")[-1].lower(): model.name for model in MODELS}
    near = get_close_matches(name.split("/")[-1].lower(), short, n=2, cutoff=0.75)
    return f" Did you mean {' or '.join(short[key] for key in near)}?" if near else ""


@contextmanager
def _quiet_hub() -> Iterator[None]:
    """No bars and no notes of the hub's library: `_bar` shows one, `_one_sentence` the rest."""
    from huggingface_hub import utils
    from huggingface_hub.utils import logging

    verbosity, shown = logging.get_verbosity(), not utils.are_progress_bars_disabled()
    logging.set_verbosity_error()
    if shown:
        utils.disable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shown:
            utils.enable_progress_bars()


@contextmanager
def _bar(label: str) -> Iterator[type]:
    """A tqdm class that shows the bytes of all files together, and nothing else."""
    from tqdm import tqdm

    made: list[tqdm] = []

    class Bar(tqdm):
        """One line; the library makes several bars, and renames them."""

        def __init__(self, *args: Any, **settings: Any):
            counts_bytes = settings.get("unit") == "B"
            twin = str(settings.get("desc")).startswith("Downloading bytes")
            for key in ("name", "bar_format", "disable"):
                settings.pop(key, None)
            settings["desc"] = label
            super().__init__(*args, disable=not counts_bytes or twin, **settings)
            made.append(self)

        def set_description(self, *args: Any, **settings: Any) -> None:
            """Keep the label."""

        set_description_str = set_postfix_str = set_description

    try:
        yield Bar
    finally:
        for bar in made:  # a download that breaks off leaves its bar open
            bar.close()


def quiet_libraries() -> None:
    """No bars or notes from transformers: each of our stages shows one bar of its own."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
