"""Loaders: data sets to a Collection."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from .collection import Collection, Qrels
from .cwe import load_cwe
from .hub import require_hub

__all__ = ["load_beir", "load_cwe", "load_msmarco"]

MSMARCO = "namespace-Pt/msmarco"
MSMARCO_QUERIES, MSMARCO_POSITIVES = 100, 5_000
_HEADER = ["query-id", "corpus-id", "score"]


def load_beir(folder: str | Path) -> Collection:
    """A collection in the format of the BEIR benchmark, from a folder on this machine.

    The folder holds `corpus.jsonl` (one `{"_id", "title", "text"}` a line, title optional),
    `queries.jsonl` (`{"_id", "text"}`) and one `qrels/<split>.tsv` a split, with the header
    query-id, corpus-id, score and the columns it names. Queries that no split judges are left
    out.

    Raises:
        FileNotFoundError: one of the files is missing.
        ValueError: a malformed line (named by file and number), a duplicate or empty id, a pair
            or a query judged twice, an empty corpus, and what `Collection` raises.
    """
    folder = Path(folder)
    documents, titles = {}, {}
    for where, key, row in _records(folder / "corpus.jsonl"):
        if key in documents:
            raise ValueError(f"{where}: the document id {key!r} stands twice.")
        title, text = str(row.get("title") or "").strip(), row["text"]
        documents[key] = f"{title} {text}".strip()
        if title:
            titles[key] = title
    texts = {}
    for where, key, row in _records(folder / "queries.jsonl"):
        if key in texts:
            raise ValueError(f"{where}: the query id {key!r} stands twice.")
        texts[key] = row["text"]

    files = sorted((folder / "qrels").glob("*.tsv"))
    if not files:
        raise FileNotFoundError(
            f"{folder / 'qrels'} holds no .tsv file: put the judgments in qrels/test.tsv."
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
    unknown = [query for query in qrels if query not in texts]
    if unknown:
        raise ValueError(
            f"{folder / 'qrels'} judges query {unknown[0]!r}, which queries.jsonl does not hold "
            f"({len(unknown)} such): add it or remove its lines."
        )
    queries = {query: texts[query] for query in qrels}
    return Collection(folder.resolve().name, documents, queries, qrels, splits, titles)


def _records(path: Path) -> Iterator[tuple[str, str, dict]]:
    """(place, id, record) for each line of a JSON Lines file."""
    if not path.exists():
        raise FileNotFoundError(
            f"{path} is missing: a BEIR folder holds corpus.jsonl, queries.jsonl and "
            "qrels/test.tsv."
        )
    for number, line in _lines(path):
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
            key = row["_id"]
            if not isinstance(key, str | int) or not isinstance(row["text"], str):
                raise TypeError
        except (ValueError, KeyError, TypeError):
            raise ValueError(
                f'{where}: expected {{"_id": "...", "text": "..."}}, found {line[:60]!r}.'
            ) from None
        if not str(key).strip():
            raise ValueError(f"{where}: the id is empty.")
        yield where, str(key), row


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number, text) of the lines that are not blank."""
    with path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            try:
                text = line.decode("utf-8").rstrip("\r\n")
            except UnicodeDecodeError:
                raise ValueError(
                    f"{path}, line {number}: not UTF-8 text; save the file as UTF-8."
                ) from None
            if text.strip():
                yield number, text


def _read_judgments(path: Path) -> Qrels:
    qrels: Qrels = {}
    for number, line in _lines(path):
        fields = line.split("\t")
        if number == 1 and fields == _HEADER:
            continue
        where = f"{path}, line {number}"
        try:
            query, document, grade = fields
            value = int(grade)
        except ValueError:
            raise ValueError(
                f"{where}: expected query id, document id and a whole number separated by "
                f"tabs, found {line[:60]!r}."
            ) from None
        if document in qrels.setdefault(query, {}):
            raise ValueError(
                f"{where}: query {query!r} and document {document!r} are judged a second time."
            )
        qrels[query][document] = value
    return qrels


def load_msmarco() -> Collection:
    """MS MARCO as the BGE reranker guide cuts it: a small corpus of passages that are answers.

    Queries are the first 100 of the `dev` split of `namespace-Pt/msmarco`; the corpus holds the
    positive passages of its first 5,000 queries. Equal texts are one document here; the published
    notebook counts 5,331 passages. Every passage answers some query, so the task is easier than
    search.

    Raises:
        ConnectionError: the data is not on this machine and the hub cannot be reached.
        ValueError: the data set has not the columns `query` and `positive`.
    """
    import datasets

    cache = Path(datasets.config.HF_DATASETS_CACHE) / MSMARCO.replace("/", "___")
    if not cache.is_dir():
        require_hub(f"The data set {MSMARCO!r}")
    rows = datasets.load_dataset(MSMARCO, split="dev")
    missing = {"query", "positive"} - set(rows.column_names)
    if missing:
        raise ValueError(
            f"{MSMARCO} has no column {', '.join(sorted(missing))} but "
            f"{', '.join(rows.column_names)}: the data set has changed."
        )
    rows = rows.select(range(min(MSMARCO_POSITIVES, len(rows))))
    passages = dict.fromkeys(text for row in rows["positive"] for text in row)
    number = {text: f"P{i}" for i, text in enumerate(passages)}
    asked = rows.select(range(min(MSMARCO_QUERIES, len(rows))))
    queries = {f"Q{i}": text for i, text in enumerate(asked["query"])}
    qrels = {f"Q{i}": {number[t]: 1 for t in row} for i, row in enumerate(asked["positive"])}
    return Collection(
        name="msmarco",
        documents={key: text for text, key in number.items()},
        queries=queries,
        qrels=qrels,
        splits={"dev": list(queries)},
    )
