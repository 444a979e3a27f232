"""BEIR: a folder in the benchmark's format, one of its sets by name, or a corpus as a stream."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from itertools import chain, islice
from pathlib import Path
from typing import Any

from .collection import Collection, Qrels, check_id
from .files import read_lines
from .hub import find_data

BEIR_SETS = (
    "arguana",
    "climate-fever",
    "dbpedia-entity",
    "fever",
    "fiqa",
    "hotpotqa",
    "msmarco",
    "nfcorpus",
    "nq",
    "quora",
    "scidocs",
    "scifact",
    "trec-covid",
    "webis-touche2020",
)
"""The public sets of BEIR (Thakur et al., arXiv 2104.08663) that lie on the hub as BeIR/<name>,
all but CQADupStack, which is twelve collections in one."""
BATCH = 1_000
_HEADER = ["query-id", "corpus-id", "score"]


def load_beir(folder_or_name: str | Path) -> Collection:
    """A collection in the format of the BEIR benchmark, from this machine or from the hub.

    A folder holds `corpus.jsonl` (one `{"_id", "title", "text"}` a line, title optional),
    `queries.jsonl` (`{"_id", "text"}`) and one `qrels/<split>.tsv` a split, with the header
    query-id, corpus-id, score and the columns it names. Queries that no split judges are left
    out.

    A name such as "scifact" fetches `BeIR/<name>` and `BeIR/<name>-qrels` from the hub. What
    cannot be searched there (a document without text, a query without a relevant document) is
    left out and counted in a warning. BEIR's own evaluation also leaves out a document that has
    the id of the query (ArguAna, Quora); the measures here do not.

    Args:
        folder_or_name: a folder if there is one of that name, else one of `BEIR_SETS`. The whole
            corpus is held in memory; see `stream_corpus` for larger ones.

    Warns:
        UserWarning: something was left out of a set of the hub.

    Raises:
        FileNotFoundError: one of the files is missing.
        ValueError: a name that is neither a folder nor a set; a malformed line (named by file
            and number), a duplicate or empty id, a pair or a query judged twice, an empty corpus,
            a data set without the expected columns, and what `Collection` raises.
        ConnectionError: the set is not on this machine and the hub cannot be reached.
    """
    name = str(folder_or_name)
    if Path(name).is_dir():
        return _from_folder(Path(name))
    if name not in BEIR_SETS:
        near = get_close_matches(name.lower(), BEIR_SETS, n=2, cutoff=0.6)
        hint = f"did you mean {' or '.join(near)}?" if near else f"sets: {', '.join(BEIR_SETS)}."
        raise ValueError(
            f"There is no folder {name!r} (with a corpus.jsonl), and BEIR has no set of that "
            f"name; {hint}"
        )
    return _from_hub(name)


def stream_corpus(
    source: str | Path | Iterable[Mapping[str, Any]], batch_size: int = BATCH
) -> Iterator[tuple[list[str], list[str]]]:
    """The documents of a corpus batch by batch, for corpora that do not fit into memory.

    Args:
        source: a `corpus.jsonl` (or `.jsonl.gz`), a BEIR folder that holds one, the name of a
            BEIR set, or records with "_id", "text" and perhaps "title", such as a streamed data
            set.
        batch_size: documents at once.

    Yields:
        (ids, texts), `batch_size` less the documents without text, fewer at the end. Ids are not
        compared over the whole corpus, which would hold them all; `indexing.build_index_from` does.

    Warns:
        UserWarning: at the end, if documents without text were left out.

    Raises:
        ValueError: `batch_size` is below 1, or a malformed line or record, with its number.
        FileNotFoundError, ConnectionError: see `load_beir`.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}: take at least one document at a time.")
    return _batches(_corpus_records(source), batch_size)


def _batches(
    records: Iterable[tuple[str, str, Mapping[str, Any]]], size: int
) -> Iterator[tuple[list[str], list[str]]]:
    documents = ((key, _document(row)[0]) for _, key, row in records)
    empty = 0
    while batch := list(islice(documents, size)):
        filled = [(key, text) for key, text in batch if text]
        empty += len(batch) - len(filled)
        if filled:
            yield [key for key, _ in filled], [text for _, text in filled]
    if empty:
        warnings.warn(f"{empty} documents without text were left out.", stacklevel=2)


def _corpus_records(
    source: str | Path | Iterable[Mapping[str, Any]],
) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    if not isinstance(source, str | Path):
        return _checked_records(enumerate(source, 1), "record")
    path = Path(source)
    if path.is_dir():
        return _records(path / "corpus.jsonl")
    if path.exists() or str(source) not in BEIR_SETS:
        return _records(path)
    return _rows(f"BeIR/{source}", "corpus*")


def _from_folder(folder: Path) -> Collection:
    documents, titles = _documents(_records(folder / "corpus.jsonl"))
    texts = _queries(_records(folder / "queries.jsonl"))
    qrels, splits = _judgments(folder / "qrels")
    unknown = [query for query in qrels if query not in texts]
    if unknown:
        raise ValueError(
            f"{folder / 'qrels'} judges query {unknown[0]!r}, which queries.jsonl does not hold "
            f"({len(unknown)} such): add it or remove its lines."
        )
    queries = {query: texts[query] for query in qrels}
    return Collection(folder.resolve().name, documents, queries, qrels, splits, titles)


def _from_hub(name: str) -> Collection:
    judgments = find_data(f"BeIR/{name}-qrels", ["*.tsv"])
    documents, titles = _documents(_rows(f"BeIR/{name}", "corpus*"))
    texts = _queries(_rows(f"BeIR/{name}", "queries*"))
    qrels, splits = _judgments(judgments)
    empty = [key for key, text in documents.items() if not text]
    for key in empty:
        del documents[key]
    kept: Qrels = {}
    missing = 0
    for query, grades in qrels.items():
        known = {key: grade for key, grade in grades.items() if key in documents}
        missing += sum(grade > 0 for key, grade in grades.items() if key not in known)
        if query in texts and any(grade > 0 for grade in known.values()):
            kept[query] = known
    lost = len(qrels) - len(kept)
    if empty or lost or missing:
        warnings.warn(
            f"Left out of {name}: {len(empty)} documents without text, {missing} judgments of "
            f"relevant documents that are not in the corpus, and {lost} queries that have no "
            "other.",
            stacklevel=3,
        )
    splits = {split: [query for query in ids if query in kept] for split, ids in splits.items()}
    splits = {split: ids for split, ids in splits.items() if ids}
    return Collection(
        name, documents, {query: texts[query] for query in kept}, kept, splits, titles
    )


def _documents(
    records: Iterable[tuple[str, str, Mapping[str, Any]]],
) -> tuple[dict[str, str], dict[str, str]]:
    """Document id -> text, and document id -> title where there is one."""
    documents, titles = {}, {}
    for where, key, row in records:
        if key in documents:
            raise ValueError(f"{where}: the document id {key!r} stands twice.")
        documents[key], title = _document(row)
        if title:
            titles[key] = title
    return documents, titles


def _document(row: Mapping[str, Any]) -> tuple[str, str]:
    """Text with its title before it, and the title."""
    title = str(row.get("title") or "").strip()
    return f"{title} {row['text']}".strip(), title


def _queries(records: Iterable[tuple[str, str, Mapping[str, Any]]]) -> dict[str, str]:
    texts = {}
    for where, key, row in records:
        if key in texts:
            raise ValueError(f"{where}: the query id {key!r} stands twice.")
        texts[key] = row["text"]
    return texts


def _rows(name: str, pattern: str) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """The records of one part of a data set on the hub, read file by file."""
    rows = read_rows(name, pattern, ("_id", "text"))
    return _checked_records(enumerate(rows, 1), f"{name}, {pattern.rstrip('*')} row")


def read_rows(name: str, pattern: str, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The rows of a data set on the hub one by one, in the order of its files.

    Args:
        name: such as "namespace-Pt/msmarco".
        pattern: its files in parquet or JSON Lines format, such as "data/dev-*".
        columns: those it must have.

    Raises:
        ValueError: a column is missing.
        FileNotFoundError, ConnectionError: see `hub.find_data`.
    """
    import datasets

    folder = find_data(name, [pattern])
    files = sorted(str(path) for path in folder.glob(pattern) if path.is_file())
    files = files or sorted(str(path) for path in folder.glob(f"{pattern}/*") if path.is_file())
    kind = "parquet" if files[0].endswith(".parquet") else "json"
    data = datasets.load_dataset(kind, data_files={"all": files}, split="all", streaming=True)
    rows = iter(data)
    first = next(rows, {})
    if missing := sorted(set(columns) - set(first)):
        raise ValueError(
            f"The data set {name!r} has no column {', '.join(missing)} but "
            f"{', '.join(first) or 'no rows'}: it has changed, or is of another kind."
        )
    return chain([first], rows)


def _records(path: Path) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """(place, id, record) for each line of a JSON Lines file."""
    if not path.exists():
        raise FileNotFoundError(
            f"{path} is missing: a BEIR folder holds corpus.jsonl, queries.jsonl and "
            "qrels/test.tsv."
        )
    return _checked_records(read_lines(path), f"{path}, line")


def _checked_records(
    numbered: Iterable[tuple[int, str | Mapping[str, Any]]], place: str
) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    for number, found in numbered:
        where = f"{place} {number}"
        try:
            row = json.loads(found) if isinstance(found, str) else found
            key = row["_id"]
            if not isinstance(key, str | int) or not isinstance(row["text"], str):
                raise TypeError
        except (ValueError, KeyError, TypeError):
            raise ValueError(
                f'{where}: expected {{"_id": "...", "text": "..."}}, found {str(found)[:60]!r}.'
            ) from None
        check_id(str(key), where)
        yield where, str(key), row


def _judgments(folder: Path) -> tuple[Qrels, dict[str, list[str]]]:
    """The qrels of all splits together, and which queries each of them judges."""
    files = sorted(folder.glob("*.tsv"))
    if not files:
        raise FileNotFoundError(
            f"{folder} holds no .tsv file: put the judgments in qrels/test.tsv."
        )
    qrels: Qrels = {}
    splits: dict[str, list[str]] = {}
    for file in files:
        judged = _read_judgments(file)
        twice = [query for query in judged if query in qrels]
        if twice:
            raise ValueError(
                f"{file} judges query {twice[0]!r}, which another file in qrels/ judges too: "
                "keep every query in one split."
            )
        if judged:
            splits[file.stem] = list(judged)
            qrels |= judged
    return qrels, splits


def _read_judgments(path: Path) -> Qrels:
    qrels: Qrels = {}
    for number, line in read_lines(path):
        fields = line.split("\t")
        if number == 1 and fields == _HEADER:
            continue
        where = f"{path}, line {number}"
        try:
            query, document, grade = fields
            value = int(grade)
        except ValueError:
            raise ValueError(
                f"{where}: expected query id, document id and a whole number separated by tabs"
                f"{', or the header query-id, corpus-id, score' * (number == 1)}, found "
                f"{line[:60]!r}."
            ) from None
        if document in qrels.setdefault(query, {}):
            raise ValueError(
                f"{where}: query {query!r} and document {document!r} are judged a second time."
            )
        qrels[query][document] = value
    return qrels
