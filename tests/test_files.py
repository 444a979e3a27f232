"""Files: any usual way of saving one is read, and what is written is whole."""

import gzip
from pathlib import Path

import pytest

from rerank_utils.collection import read_qrels, write_qrels
from rerank_utils.files import read_lines, write_whole
from rerank_utils.run import Run

LINES = "301 0 d1 1\n\n302 0 d2 2\n"
JUDGED = {"301": {"d1": 1}, "302": {"d2": 2}}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("name", ["qrels", "qrels.gz"])
def test_judgments_and_runs_are_read_however_they_were_saved(tmp_path, encoding, ending, name):
    def save(text):
        content = text.replace("\n", ending).encode(encoding)
        (tmp_path / name).write_bytes(gzip.compress(content) if name[-3:] == ".gz" else content)

    save(LINES)
    assert list(read_lines(tmp_path / name)) == [(1, "301 0 d1 1"), (3, "302 0 d2 2")]
    assert read_qrels(tmp_path / name) == JUDGED
    save("301 Q0 d1 1 2.5 some\n")
    run = Run.from_trec(tmp_path / name)
    assert run.top("301") == [("d1", 2.5)] and run.name == "some"


def test_what_is_no_text_is_named(tmp_path):
    path = tmp_path / "qrels"
    path.write_bytes("301 0 café 1\n".encode("latin-1"))
    with pytest.raises(ValueError, match="qrels, line 1: not UTF-8 text"):
        read_qrels(path)
    packed = tmp_path / "qrels.gz"
    whole = gzip.compress(LINES.encode() * 99)
    flipped = whole[:20] + bytes(255 - byte for byte in whole[20:26]) + whole[26:]
    for damaged in (whole[:-12], LINES.encode(), flipped):
        packed.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"qrels.gz is damaged"):
            list(read_lines(packed))


def test_a_file_is_written_whole_or_stays_as_it_was(tmp_path, monkeypatch):
    path, write = tmp_path / "file", Path.write_bytes
    write_whole("before\n", path)

    def full(self, content):
        write(self, content[:3])
        raise OSError(28, "No space left on device")

    run = Run.from_lists(["q"], [["d"]], [[1.0]])
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        for writing in (
            lambda: write_whole("after", path),
            lambda: run.to_trec(path),
            lambda: write_qrels(JUDGED, path),
        ):
            with pytest.raises(OSError, match="what stood there before is kept"):
                writing()
    assert path.read_text() == "before\n" and list(tmp_path.iterdir()) == [path]
    write_whole("x", tmp_path / "new" / "folder" / "file")
    assert (tmp_path / "new" / "folder" / "file").read_text() == "x"
    with pytest.raises(OSError, match="could not be written"):
        write_whole("x", path / "file")
