"""Downloading from the model hub, so that what can go wrong on the way is said in one sentence."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .zoo import nearest, row

TIMEOUT = 5.0
"""Seconds to wait for a first sign of life from the hub."""
OFFLINE_HINT = (
    "check the network, or use the offline profile (RERANK_PROFILE=offline), "
    "which needs nothing but packages"
)


def download(name: str, kind: str, choose: Callable[[Iterable[str]], list[str]]) -> Path:
    """Fetch the chosen files of a repository into the hub's cache, with one bar."""
    from huggingface_hub import HfApi, constants, snapshot_download

    what = f"The {'data set' if kind == 'dataset' else 'model'} {name!r}"
    missing = f"{what} is not on this machine and the hub cannot be reached"
    hint = f"{OFFLINE_HINT}.{did_you_mean(name)}"
    if constants.HF_HUB_OFFLINE or os.environ.get("HF_DATASETS_OFFLINE") == "1":
        raise ConnectionError(f"{missing} (offline mode is set): {hint}")
    page = f"datasets/{name}" if kind == "dataset" else name
    with _one_sentence(what, page, f"{missing}: {hint}"):
        info = _within(
            1.5 * TIMEOUT, lambda: HfApi().repo_info(name, repo_type=kind, timeout=TIMEOUT)
        )
    files = choose([file.rfilename for file in info.siblings or []])
    broken = (
        f"The download of {what[0].lower()}{what[1:]} broke off: check the network and run the "
        "same command again; files that arrived whole are kept."
    )
    with _quiet_hub(), _bar(f"download {name}") as bar, _one_sentence(what, page, broken):
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
def _one_sentence(what: str, page: str, unreachable: str) -> Iterator[None]:
    """The errors of the hub's library as one of Python's own, with one sentence.

    Args:
        what: how the sentence begins.
        page: the address on the hub, without the hub's own.
        unreachable: the sentence where nobody answered.
    """
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
            raise PermissionError(
                f"{what} is gated, and you have no access yet: accept its terms on "
                f"{constants.ENDPOINT}/{page}, then log in with `hf auth login` or set HF_TOKEN "
                "to a token of that account."
            ) from None
        if isinstance(error, errors.RepositoryNotFoundError):
            raise FileNotFoundError(
                f"{what} does not exist on the hub, or is private: check the spelling."
                + did_you_mean(page)
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


def did_you_mean(name: str) -> str:
    """A hint at models of the table that have a name like this one, or nothing."""
    near = [] if row(name) else nearest(name)
    return f" Did you mean {' or '.join(near)}?" if near else ""
