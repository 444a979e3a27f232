"""Files: read line by line, written whole."""

from __future__ import annotations

import gzip
import os
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def read_lines(path: str | Path) -> Iterator[tuple[int, str]]:
    """(number, text) of the lines of a UTF-8 file that are not blank.

    A file whose name ends in `.gz` is unpacked. A byte order mark, with which some editors begin
    a file, is no part of the text.

    Raises:
        ValueError: a line that is not UTF-8, or a packed file that is damaged.
    """
    path = Path(path)
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as stream:
            for number, line in enumerate(stream, 1):
                text = _decoded(line, f"{path}, line {number}").rstrip("\r\n")
                if number == 1:
                    text = text.removeprefix("\ufeff")
                if text.strip():
                    yield number, text
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is damaged ({error}): fetch or pack it anew.") from None


def _decoded(line: bytes, where: str) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{where}: not UTF-8 text; save the file as UTF-8.") from None


def is_unicode(text: str) -> bool:
    """Whether a text can be written; half of a surrogate pair cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def write_whole(text: str, path: str | Path) -> None:
    """Write a file in UTF-8 beside its place, then move it there: it is whole, or as it was.

    Raises:
        OSError: it cannot be written.
    """
    content = text.encode()
    with replacing(Path(path)) as fresh:
        fresh.write_bytes(content)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A place beside `path` to write to; the file moves to `path` at the end. Folders are made.

    Raises:
        OSError: it cannot be written. What stood there before stays, and no half file is left.
    """
    fresh = path.with_name(f"{path.name}.{os.getpid()}.tmp")  # another process may do the same
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield fresh
        fresh.replace(path)
    except OSError as error:
        raise type(error)(
            f"{path} could not be written ({error}); what stood there before is kept. Make room "
            "on the disk, or choose another place, and try again."
        ) from error
    finally:
        with suppress(OSError):  # it is gone, or there was never a place for it
            fresh.unlink()


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """A fresh folder beside `folder` to write to; its files move there at the end.

    So an interrupt or a full disk leaves what stood there before, and no half model.
    """
    folder = folder.resolve()
    fresh = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        fresh.mkdir(parents=True)
        yield fresh
        if folder.exists():
            for file in fresh.iterdir():
                file.replace(folder / file.name)
        else:
            fresh.replace(folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
