"""TREC: documents, topics and qrels in the formats of TREC to a Collection."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

from .collection import Collection, read_qrels
from .files import read_lines
from .run import Run

_ID_NAMES = ("_id", "id", "docno", "docid")
_TOPIC = re.compile(r"<top>(.*?)</top>", re.DOTALL | re.IGNORECASE)
_NUMBER = re.compile(r"<num>\s*(?:Number:)?\s*([^\s<]+)", re.IGNORECASE)
_TITLE = re.compile(
    r"<title>\s*(?:Topic:)?\s*(.*?)\s*(?=</?(?:num|title|desc|narr)\b|$)", re.DOTALL | re.IGNORECASE
)


def load_trec(
    documents: str | Path,
    topics: str | Path,
    qrels: str | Path,
    run: Run | str | Path | None = None,
    split: str = "test",
) -> Collection:
    """A collection from TREC files, to evaluate or rerank anybody's run.

    Formats, chosen by the file's ending (a further `.gz` is unpacked):
        documents: `.tsv`, id and text separated by a tab; or `.jsonl`, with an id ("_id", "id",
            "docno" or "docid"), "text" and perhaps "title".
        topics: `.tsv`, id and query separated by a tab; any other ending is read as TREC's
            `<top>` blocks, of which the number and the title are taken.
        qrels: query id, 0, document id, grade.

    Topics that nobody judged are left out. A topic without a relevant document is left out with
    a warning, because no measure can tell one ranking of it from another.

    Args:
        documents, topics, qrels: the files.
        run: if given, only documents are kept that the qrels name or that the run has for a
            judged topic: enough to rerank `run.select(collection.queries)`, and little memory with
            a large corpus.
        split: the name of the one split.

    Warns:
        UserWarning: topics without a relevant document were left out, or judged topics that are
            not in the file of topics.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a malformed line or topic, with its place; an id that stands twice; a document
            that the run or the qrels name but the documents lack; and what `Collection` raises.
    """
    for argument, path in (("documents", documents), ("topics", topics), ("qrels", qrels)):
        if not Path(path).is_file():
            raise FileNotFoundError(f"{argument}: there is no file {str(path)!r}; check the path.")
    judged = read_qrels(qrels)
    queries = _read_topics(Path(topics))
    found = {
        query: grades
        for query, grades in judged.items()
        if query in queries and any(grade > 0 for grade in grades.values())
    }
    if not found:
        raise ValueError(
            f"No topic of {topics} has a relevant document in {qrels}: do the two belong together?"
        )
    if lost := sum(query in queries for query in judged) - len(found):
        warnings.warn(f"{lost} topics without a relevant document were left out.", stacklevel=2)

    if absent := [query for query in judged if query not in queries]:
        warnings.warn(
            f"{len(absent)} judged topics, such as {absent[0]!r}, are not in {topics} and were "
            "left out: compare how both write the numbers.",
            stacklevel=2,
        )
    wanted = None
    if run is not None:
        run = run if isinstance(run, Run) else Run.from_trec(run)
        retrieved = {key for query, ids, _ in run if query in found for key in ids}
        wanted = retrieved | {key for grades in found.values() for key in grades}
    texts, titles = _read_documents(Path(documents), wanted)
    if wanted is not None and (lacking := wanted - texts.keys()):
        raise ValueError(
            f"{documents} lacks {len(lacking)} documents that the run or the qrels name, such as "
            f"{min(lacking)!r}: give the file of the whole corpus."
        )
    chosen = {query: queries[query] for query in found}
    name = Path(qrels).name.split(".")[0]
    return Collection(name, texts, chosen, found, {split: list(chosen)}, titles)


def _read_topics(path: Path) -> dict[str, str]:
    topics: dict[str, str] = {}
    for where, key, text in _tsv(path) if _ending(path) == ".tsv" else _top_blocks(path):
        if key in topics:
            raise ValueError(f"{where}: the topic {key!r} stands twice.")
        topics[key] = text
    return topics


def _top_blocks(path: Path) -> Iterator[tuple[str, str, str]]:
    blocks = _TOPIC.findall("\n".join(line for _, line in read_lines(path)))
    if not blocks:
        raise ValueError(
            f"{path} has no <top> block: give topics as .tsv (id, tab, query) or in TREC's format."
        )
    for place, block in enumerate(blocks, 1):
        number, title = _NUMBER.search(block), _TITLE.search(block)
        if not number or not title:
            raise ValueError(f"{path}, topic {place}: expected <num> and <title> in it.")
        yield f"{path}, topic {place}", number[1], " ".join(title[1].split())


def _read_documents(path: Path, wanted: set[str] | None) -> tuple[dict[str, str], dict[str, str]]:
    texts, titles = {}, {}
    ending = _ending(path)
    if ending not in (".tsv", ".jsonl"):
        raise ValueError(f"documents: {path} ends in {ending!r}; give .tsv or .jsonl.")
    for where, key, text, title in _documents(path, ending):
        if wanted is not None and key not in wanted:
            continue
        if key in texts:
            raise ValueError(f"{where}: the document id {key!r} stands twice.")
        texts[key] = f"{title} {text}".strip()
        if title:
            titles[key] = title
    return texts, titles


def _documents(path: Path, ending: str) -> Iterator[tuple[str, str, str, str]]:
    if ending == ".tsv":
        yield from ((where, key, text, "") for where, key, text in _tsv(path))
        return
    for number, line in read_lines(path):
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
            key = next(row[name] for name in _ID_NAMES if name in row)
            text, title = row["text"], str(row.get("title") or "").strip()
            if not isinstance(key, str | int) or not isinstance(text, str):
                raise TypeError
        except (ValueError, KeyError, TypeError, StopIteration):
            raise ValueError(
                f'{where}: expected {{"id": "...", "text": "..."}}, found {line[:60]!r}.'
            ) from None
        yield where, str(key), text, title


def _tsv(path: Path) -> Iterator[tuple[str, str, str]]:
    for number, line in read_lines(path):
        key, tab, text = line.partition("\t")
        if not tab or not key.strip():
            raise ValueError(
                f"{path}, line {number}: expected an id and a text separated by a tab, found "
                f"{line[:60]!r}."
            )
        yield f"{path}, line {number}", key.strip(), text.strip()


def _ending(path: Path) -> str:
    return (path.with_suffix("") if path.suffix == ".gz" else path).suffix
