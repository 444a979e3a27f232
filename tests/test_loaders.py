import json

import pytest
from safetensors.numpy import save_file

from rerank_utils import beir, hub
from rerank_utils.loaders import load_beir, load_msmarco, load_trec
from rerank_utils.reranking import rerank
from rerank_utils.run import Run


def test_a_beir_folder_becomes_a_collection(beir_folder):
    collection = load_beir(beir_folder)
    assert collection.name == "fruit"
    assert collection.documents["d1"] == "Apple A fruit that grows on trees."
    assert collection.documents["d4"] == "Tea is made from leaves."
    assert collection.titles == {"d1": "Apple", "d2": "Carrot"}
    assert list(collection.queries) == ["q1", "q2"]  # q3 is judged by nobody
    assert collection.qrels["q2"] == {"d1": 1, "d2": 0}
    assert collection.splits == {"test": ["q1", "q2"]}


@pytest.mark.parametrize("missing", ["corpus.jsonl", "queries.jsonl", "qrels/test.tsv"])
def test_a_missing_file_is_named(beir_folder, missing):
    (beir_folder / missing).unlink()
    with pytest.raises(FileNotFoundError, match=missing.replace("/", ".*")):
        load_beir(beir_folder)


@pytest.mark.parametrize(
    ("file", "line", "sentence"),
    [
        ("corpus.jsonl", "{not json", "corpus.jsonl, line 5: expected"),
        ("corpus.jsonl", '{"_id": "d9"}', "corpus.jsonl, line 5: expected"),
        ("corpus.jsonl", '{"_id": "d9", "text": 3}', "corpus.jsonl, line 5: expected"),
        ("corpus.jsonl", '{"_id": "", "text": "x"}', "line 5 has the id '': ids are not empty"),
        ("corpus.jsonl", '{"_id": "d1", "text": "x"}', "line 5: the document id 'd1' stands"),
        ("queries.jsonl", '{"_id": "q1", "text": "x"}', "line 4: the query id 'q1' stands"),
        ("corpus.jsonl", '{"_id": "d9", "text": " "}', "document 'd9' is empty"),
        ("qrels/test.tsv", "q1\td1", "test.tsv, line 5: expected query id"),
        ("qrels/test.tsv", "q1\td1\tyes", "test.tsv, line 5: expected query id"),
        ("qrels/test.tsv", "q1\td2\t0", "line 5: query 'q1' and document 'd2' are judged a second"),
        ("corpus.jsonl", '{"_id": null, "text": "x"}', "corpus.jsonl, line 5: expected"),
        ("qrels/test.tsv", "q1\td7\t1", "'d7', which is not in the corpus"),
        ("qrels/test.tsv", "q7\td1\t1", "'q7', which queries.jsonl does not hold"),
        ("qrels/test.tsv", "q3\td1\t0", "'q3' has no relevant document"),
    ],
)
def test_a_bad_line_is_named(beir_folder, file, line, sentence):
    path = beir_folder / file
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(ValueError, match=sentence):
        load_beir(beir_folder)


def test_quotation_marks_are_text(beir_folder):
    path = beir_folder / "corpus.jsonl"
    path.write_text(path.read_text() + '{"_id": "d\\"5", "text": "a \\"quoted\\" word"}\n')
    qrels = beir_folder / "qrels" / "test.tsv"
    qrels.write_text(qrels.read_text() + 'q1\td"5\t1\nq3\td1\t1\n')
    collection = load_beir(beir_folder)
    assert collection.qrels["q1"]['d"5'] == 1 and collection.qrels["q3"] == {"d1": 1}


def test_a_first_line_that_is_no_header_is_read(beir_folder):
    qrels = beir_folder / "qrels" / "test.tsv"
    qrels.write_text("q1\td2\t1\n")
    assert load_beir(beir_folder).qrels == {"q1": {"d2": 1}}
    qrels.write_text("q1\td2\tyes\n")
    with pytest.raises(ValueError, match=r"test.tsv, line 1: expected query id"):
        load_beir(beir_folder)


def test_text_that_is_not_utf8_is_named(beir_folder):
    (beir_folder / "corpus.jsonl").write_bytes(b'{"_id": "d1", "text": "na\xefve"}\n')
    with pytest.raises(ValueError, match=r"corpus.jsonl, line 1: not UTF-8"):
        load_beir(beir_folder)


def test_a_query_in_two_splits_is_refused(beir_folder):
    (beir_folder / "qrels" / "dev.tsv").write_text("q1\td1\t1\n")
    with pytest.raises(ValueError, match="judges query 'q1', which another file"):
        load_beir(beir_folder)


def test_an_empty_corpus_is_refused(beir_folder):
    (beir_folder / "corpus.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"corpus .* is empty"):
        load_beir(beir_folder)


@pytest.fixture
def fake_msmarco(monkeypatch, tmp_path):
    """The files as they lie on the hub: 6,000 queries, some with two positives or shared ones."""
    import datasets

    rows = {
        "query": [f"question {i}" for i in range(6_000)],
        "positive": [[f"answer {i}"] + (["shared"] if i % 7 == 0 else []) for i in range(6_000)],
    }
    passages = {"content": [f"answer {i // 2}" if i % 2 else f"other {i // 4}" for i in range(400)]}
    asked = []

    def find_data(name, patterns):
        asked.append((name, *patterns))
        folder = tmp_path / name / "data"
        folder.mkdir(parents=True, exist_ok=True)
        data, file = (rows, "dev") if name == "namespace-Pt/msmarco" else (passages, "train")
        table = datasets.Dataset.from_dict(data)
        table.to_parquet(folder / f"{file}-00000-of-00001-0123456789abcdef.parquet")
        return folder.parent

    monkeypatch.setattr(beir, "find_data", find_data)
    return rows, asked


def test_msmarco_is_cut_as_the_guide_cuts_it(fake_msmarco):
    _, asked = fake_msmarco
    collection = load_msmarco()
    assert asked == [("namespace-Pt/msmarco", "data/dev-*")]
    assert len(collection.queries) == 100
    assert len(collection.documents) == 5_000 + 1  # each text once
    documents = collection.documents
    assert {documents[d] for d in collection.qrels["Q0"]} == {"answer 0", "shared"}
    assert {documents[d] for d in collection.qrels["Q1"]} == {"answer 1"}


def test_msmarco_with_other_columns_is_refused(fake_msmarco):
    rows, _ = fake_msmarco
    rows["text"] = rows.pop("positive")
    with pytest.raises(ValueError, match="no column positive"):
        load_msmarco()


def test_distractors_answer_no_chosen_query(fake_msmarco):
    plain, harder = load_msmarco(), load_msmarco(distractors=90)
    assert plain.documents.items() <= harder.documents.items()
    added = harder.documents.keys() - plain.documents.keys()
    assert len(added) == 90
    texts = {harder.documents[key] for key in added}
    assert texts == {f"other {i}" for i in range(90)}  # each once, and none that is an answer
    assert harder.qrels == plain.qrels and harder.queries == plain.queries
    assert harder.name == "msmarco+90"
    with pytest.raises(ValueError, match=r"distractors is 200, but .* gives 100"):
        load_msmarco(distractors=200)
    with pytest.raises(ValueError, match="distractors is -1"):
        load_msmarco(distractors=-1)


def test_a_half_filled_cache_goes_on_to_the_hub(monkeypatch, tmp_path):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **k: str(tmp_path))
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        with pytest.raises(ConnectionError, match="offline profile"):
            hub.find_model("some/model")
        (tmp_path / name).write_text("{}")
    assert hub.find_model("some/model") == str(tmp_path)
    shards = {"weight_map": {"a": "part-1.safetensors", "b": "part-2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(shards))
    save_file({}, tmp_path / "part-1.safetensors")
    with pytest.raises(ConnectionError, match="offline profile"):
        hub.find_model("some/model")
    save_file({}, tmp_path / "part-2.safetensors")
    assert hub.find_model("some/model") == str(tmp_path)


def test_a_folder_that_is_no_model_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no model folder"):
        hub.find_model(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="no model folder"):
        hub.find_model("just-a-word")
    with pytest.raises(FileNotFoundError, match=r"no config.json"):
        hub.find_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({}))
    with pytest.raises(FileNotFoundError, match="no tokenizer"):
        hub.find_model(tmp_path)
    (tmp_path / "tokenizer.json").write_text(json.dumps({}))
    with pytest.raises(FileNotFoundError, match="no weights"):
        hub.find_model(tmp_path)


def test_pickles_are_refused_unless_asked_for(tmp_path, monkeypatch):
    for name in ("config.json", "tokenizer.json", "pytorch_model.bin"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(ValueError, match=r"pickle format only.*RERANK_ALLOW_PICKLE=1"):
        hub.find_model(tmp_path)
    assert hub.find_model(tmp_path, allow_pickle=True) == str(tmp_path)
    monkeypatch.setenv("RERANK_ALLOW_PICKLE", "1")
    assert hub.find_model(tmp_path) == str(tmp_path)
    monkeypatch.delenv("RERANK_ALLOW_PICKLE")
    save_file({}, tmp_path / "model.safetensors")
    assert hub.find_model(tmp_path) == str(tmp_path)  # which is what will be loaded


@pytest.mark.parametrize(("wrong", "hint"), [("scifat", "scifact"), ("NFCorpus", "nfcorpus")])
def test_a_misspelt_beir_set_offers_near_ones(wrong, hint):
    with pytest.raises(ValueError, match=f"did you mean .*{hint}"):
        load_beir(wrong)
    with pytest.raises(ValueError, match=r"no folder 'my_data'.*sets: arguana"):
        load_beir("my_data")


@pytest.fixture
def trec_files(tmp_path):
    """Three documents, three topics of which two are judged to a purpose, and a run."""
    files = {
        "docs.tsv": "d1\tApples grow on trees.\nd2\tCarrots are roots.\nd3\tBread is baked.\n",
        "docs.jsonl": '{"docno": "d1", "title": "Apple", "text": "It grows on trees."}\n'
        '{"docno": "d2", "text": "Carrots are roots."}\n{"docno": "d3", "text": "Bread."}\n',
        "topics.tsv": "301\twhat grows on trees\n302\torange root\n303\tnothing here\n",
        "topics.trec": "<top>\n<num> Number: 301\n<title> what grows\non trees\n\n<desc> "
        "Description:\nFruit.\n</top>\n<top>\n<num> Number: 302\n<title> Topic: orange root\n"
        "</top>\n<top><num>303</num><title>nothing here</title></top>\n",
        "fruit.qrels": "301 0 d1 2\n302 0 d2 1\n302 0 d1 0\n303 0 d1 0\n",
        "some.run": "301 Q0 d1 1 3.0 x\n302 Q0 d2 1 2.0 x\n307 Q0 d3 1 2.0 x\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.mark.parametrize("topics", ["topics.tsv", "topics.trec"])
@pytest.mark.parametrize("documents", ["docs.tsv", "docs.jsonl"])
def test_trec_files_become_a_collection(trec_files, topics, documents):
    with pytest.warns(UserWarning, match="1 topics without a relevant document"):
        found = load_trec(trec_files / documents, trec_files / topics, trec_files / "fruit.qrels")
    assert found.queries == {"301": "what grows on trees", "302": "orange root"}
    assert found.qrels == {"301": {"d1": 2}, "302": {"d2": 1, "d1": 0}}
    assert list(found.documents) == ["d1", "d2", "d3"] and found.splits == {"test": ["301", "302"]}
    first = {"docs.tsv": "Apples grow on trees.", "docs.jsonl": "Apple It grows on trees."}
    assert found.documents["d1"] == first[documents]


@pytest.mark.filterwarnings("ignore:1 topics without")
def test_a_trec_run_brings_only_its_documents(trec_files):
    paths = [trec_files / name for name in ("docs.tsv", "topics.tsv", "fruit.qrels")]
    found = load_trec(*paths, run=trec_files / "some.run")
    assert list(found.documents) == ["d1", "d2"]
    run = Run.from_trec(trec_files / "some.run")
    assert load_trec(*paths, run=run).documents == found.documents
    (trec_files / "some.run").write_text("301 Q0 d9 1 3.0 x\n")
    with pytest.raises(ValueError, match=r"lacks 1 documents that the run or the qrels name.*'d9'"):
        load_trec(*paths, run=trec_files / "some.run")


@pytest.mark.filterwarnings("ignore:1 topics without")
@pytest.mark.parametrize(
    ("file", "text", "sentence"),
    [
        ("docs.tsv", "d1 no tab", r"docs.tsv, line 1: expected an id and a text"),
        ("docs.tsv", "d1\ta\nd1\tb", r"docs.tsv, line 2: the document id 'd1' stands twice"),
        ("topics.tsv", "301\ta\n301\tb", r"topics.tsv, line 2: the topic '301' stands twice"),
        ("fruit.qrels", "999 0 d1 1", "do the two belong together"),
    ],
)
def test_a_bad_trec_file_is_named(trec_files, file, text, sentence):
    (trec_files / file).write_text(text)
    with pytest.raises(ValueError, match=sentence):
        load_trec(*[trec_files / name for name in ("docs.tsv", "topics.tsv", "fruit.qrels")])


@pytest.mark.filterwarnings("ignore:1 topics without")
def test_a_run_with_topics_that_nobody_judged_can_be_reranked(trec_files):
    paths = [trec_files / name for name in ("docs.tsv", "topics.tsv", "fruit.qrels")]
    run = Run.from_trec(trec_files / "some.run")
    found = load_trec(*paths, run=run)
    with pytest.raises(KeyError, match=r"names query '307'.*Run\.select"):
        rerank(run, found.queries, found.documents, None, 1)
    assert run.select(found.queries).query_ids.tolist() == list(found.queries)


@pytest.mark.filterwarnings("ignore:1 topics without")
def test_judged_topics_that_are_not_there_are_told(trec_files):
    paths = [trec_files / name for name in ("docs.tsv", "topics.tsv", "fruit.qrels")]
    paths[1].write_text("0301\twhat grows on trees\n302\torange root\n303\tnothing here\n")
    with pytest.warns(UserWarning, match=r"1 judged topics, such as '301', are not in .*topics"):
        assert list(load_trec(*paths).queries) == ["302"]


def test_a_title_may_hold_a_sign_of_less(trec_files):
    topics = trec_files / "topics.trec"
    topics.write_text(topics.read_text().replace("orange root", "is 3 < 4 or <b>not</b>"))
    with pytest.warns(UserWarning, match="1 topics without"):
        found = load_trec(trec_files / "docs.tsv", topics, trec_files / "fruit.qrels")
    assert found.queries["302"] == "is 3 < 4 or <b>not</b>"


@pytest.mark.filterwarnings("ignore:1 topics without")
@pytest.mark.parametrize("line", ['{"id": "d1", "text": null}', '{"id": null, "text": "a"}'])
def test_nothing_is_not_the_word_none(trec_files, line):
    (trec_files / "docs.jsonl").write_text(line)
    with pytest.raises(ValueError, match=r"docs.jsonl, line 1: expected"):
        load_trec(*[trec_files / name for name in ("docs.jsonl", "topics.tsv", "fruit.qrels")])


def test_trec_formats_that_are_not_read_are_named(trec_files):
    documents, topics, qrels = (trec_files / n for n in ("docs.tsv", "topics.trec", "fruit.qrels"))
    topics.write_text("<top><num>301</num></top>")
    with pytest.raises(ValueError, match=r"topic 1: expected <num> and <title>"):
        load_trec(documents, topics, qrels)
    topics.write_text("no topics")
    with pytest.raises(ValueError, match="has no <top> block"):
        load_trec(documents, topics, qrels)
    with pytest.raises(FileNotFoundError, match="documents: there is no file"):
        load_trec(trec_files / "none.tsv", topics, qrels)
    with (
        pytest.warns(UserWarning, match="1 topics"),
        pytest.raises(ValueError, match=r"give .tsv or .jsonl"),
    ):
        load_trec(qrels, trec_files / "topics.tsv", qrels)
