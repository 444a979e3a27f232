"""`python -m rerank_utils` and the profiles behind it."""

import json
from dataclasses import replace

import pytest

from rerank_utils.__main__ import build_parser, chosen_profile, main
from rerank_utils.collection import Collection, read_qrels
from rerank_utils.evaluation import evaluate
from rerank_utils.pipeline import Result, run_pipeline
from rerank_utils.profiles import get_profile, locate
from rerank_utils.run import Run
from rerank_utils.zoo import INSTRUCTION


@pytest.fixture
def in_empty_folder(monkeypatch, tmp_path):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def own_data(beir_folder, tiny_reranker_folder, *more):
    return ["--collection", str(beir_folder), "--reranker", str(tiny_reranker_folder), *more]


def test_ones_own_data_from_end_to_end(in_empty_folder, beir_folder, tiny_reranker_folder, capsys):
    assert main(own_data(beir_folder, tiny_reranker_folder, "--depth", "2")) == 0
    shown = capsys.readouterr()
    assert "2 test queries, 4 documents, the first 2 reranked" in shown.out
    assert "nDCG@10" in shown.out and "time: load" in shown.out
    assert "Warning" not in shown.err

    folder = in_empty_folder / "artifacts" / "beir-fruit"
    names = {path.name for path in folder.iterdir()}
    assert names >= {"first_stage.trec", "reranked.trec", "qrels.trec", "results.json"}
    assert "before_after.png" in names
    qrels = read_qrels(folder / "qrels.trec")
    numbers = json.loads((folder / "results.json").read_text())
    for run, key in (("first_stage", "before"), ("reranked", "after")):
        measured = evaluate(Run.from_trec(folder / f"{run}.trec"), qrels)
        assert measured.means() == pytest.approx(numbers[key])
    first, reranked = (Run.from_trec(folder / f"{n}.trec") for n in ("first_stage", "reranked"))
    assert first.doc_ids.shape == (2, 4)  # the whole list, not only the reranked part
    assert (first.doc_ids[:, 2:] == reranked.doc_ids[:, 2:]).all()


def test_what_was_cut_is_noted(beir_folder, tiny_reranker_folder, tmp_path):
    profile = replace(
        get_profile(f"beir:{beir_folder}"),
        reranker=str(tiny_reranker_folder),
        embedder_length=8,
        depth=2,
    )
    result = run_pipeline(profile, tmp_path)
    assert "documents are longer than the 8 tokens that are embedded" in result.notes[0]
    assert result.notes[0] in result.table()


def test_the_output_folder_can_be_chosen(
    in_empty_folder, beir_folder, tiny_reranker_folder, tmp_path
):
    where = tmp_path / "elsewhere"
    arguments = own_data(beir_folder, tiny_reranker_folder, "--depth", "4", "--output", str(where))
    assert main([*arguments, "--queries", "2"]) == 0
    assert (where / "results.json").exists()


def test_a_single_query_gets_its_table_without_a_test(
    in_empty_folder, beir_folder, tiny_reranker_folder, capsys
):
    arguments = own_data(beir_folder, tiny_reranker_folder, "--depth", "2", "--queries", "1")
    assert main(arguments) == 0
    assert "One query, or one answer for all, gives no interval" in capsys.readouterr().out
    numbers = json.loads((in_empty_folder / "artifacts/beir-fruit/results.json").read_text())
    assert numbers["comparisons"] == [] and numbers["queries"] == 1


def test_queries_that_share_answers_are_no_independent_draws():
    queries = {f"q{i}": f"query {i}" for i in range(6)}
    qrels = {query: {f"d{i // 2}": 1} for i, query in enumerate(queries)}
    documents = {f"d{i}": f"document {i}" for i in range(4)}
    answers = [next(iter(qrels[query])) for query in queries]
    first = Run.from_lists(list(queries), [["d3", d] for d in answers], [[2.0, 1.0]] * 6)
    second = Run.from_lists(list(queries), [[d, "d3"] for d in answers], [[2.0, 1.0]] * 6)

    def made(qrels):
        judged = [evaluate(run.select(list(qrels)), qrels) for run in (first, second)]
        asked = {query: queries[query] for query in qrels}
        small = Collection("pairs", documents, asked, qrels, {"test": list(asked)})
        return Result(get_profile(), small, first, second, *judged)

    shared = made(qrels)
    assert "3 groups of queries that share answers" in shared.table()
    p = {row.measure: row.p for row in shared.comparisons}
    assert p["nDCG@10"] == pytest.approx(2 / 2**3)  # three signs that can flip, not six
    alone = made({query: qrels[query] for query in ("q0", "q2", "q4")})
    assert "each is a draw of its own" in alone.table()
    assert made({query: qrels[query] for query in ("q0", "q1")}).comparisons == []


def test_a_second_run_says_that_its_times_are_not_the_cost(
    in_empty_folder, beir_folder, tiny_reranker_folder, capsys
):
    arguments = own_data(beir_folder, tiny_reranker_folder, "--depth", "2")
    for times in range(2):
        assert main(arguments) == 0
        assert capsys.readouterr().out.count("(from cache)") == 2 * times


def test_backend_and_dtype_are_passed_on_named_and_kept_apart(
    in_empty_folder, beir_folder, tiny_reranker_folder, monkeypatch
):
    monkeypatch.setenv("RERANK_CACHE", str(in_empty_folder / "engines"))
    arguments = own_data(beir_folder, tiny_reranker_folder, "--depth", "4")
    folder = in_empty_folder / "artifacts" / "beir-fruit"
    found = {}
    for choice in (("torch", "auto"), ("torch", "bfloat16"), ("onnx", "int8")):
        assert main([*arguments, "--backend", choice[0], "--dtype", choice[1]]) == 0
        numbers = json.loads((folder / "results.json").read_text())
        assert (numbers["backend"], numbers["dtype"]) == choice
        assert "rerank" not in numbers["from cache"]
        found[choice] = Run.from_trec(folder / "reranked.trec").scores
    plain, *others = found.values()
    assert all((scores != plain).any() for scores in others)
    assert len(list((in_empty_folder / "artifacts" / "cache").glob("scores-*.txt"))) == 3


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--dtype", "int8"], "backend='torch' has no dtype 'int8'"),
        (["--profile", "nonsense"], "Unknown profile 'nonsense': choose offline"),
        (["--collection", "nowhere"], "no folder 'nowhere'"),
        (["--collection", ""], "no folder ''"),  # a variable that is not set
        (["--collection", "scifact"], "such as --profile beir:scifact"),  # not that of the hub
        (["--reranker", "packaged:cwe-reranker", "--max-length", "0"], "max_length is 0"),
        (["--profile", "offline", "--collection", "x"], "not both"),
        (["--depth", "0"], "The depth is 0"),
        (["--depth", "5000"], "The depth is 5000, but 'cwe' holds 938 documents"),
        (["--split", "train2"], "no split 'train2'"),
        (["--embedder", "no/such/folder", "--pooling", "cls"], "no model folder 'no/such/folder'"),
        (["--embedder", "somebody/embedder"], "Give --pooling with --embedder"),
        (["--reranker", "packaged:x"], "Unknown model 'packaged:x'"),
        (["--profile", "msmarco"], "is not on this machine"),
        (["--profile", "beir:scifat"], "did you mean scifact"),
        (["--profile", "beir:scifact"], "is not on this machine"),
    ],
)
def test_a_wrong_argument_gets_one_sentence(
    in_empty_folder, arguments, sentence, capsys, monkeypatch
):
    if "--reranker" in arguments or "--embedder" in arguments:
        arguments = [*arguments, "--queries", "1", "--depth", "1"]
    if "--reranker" in arguments:
        monkeypatch.setattr("rerank_utils.pipeline.retrieve", lambda *a: None)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and sentence in error.splitlines()[-1]
    assert "Traceback" not in error


def test_an_interrupt_says_how_to_go_on(in_empty_folder, monkeypatch, capsys):
    def interrupted(profile, **settings):
        raise KeyboardInterrupt

    monkeypatch.setattr("rerank_utils.pipeline.run_pipeline", interrupted)
    assert main([]) == 130
    assert "goes on from here" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "said"),
    [("OutOfMemoryError", "memory is too small"), ("SafetensorError", "is the disk")],
)
def test_errors_of_libraries_are_told_in_a_sentence(
    in_empty_folder, monkeypatch, capsys, name, said
):
    def failing(profile, **settings):
        raise type(name, (RuntimeError,), {})("a long story")

    monkeypatch.setattr("rerank_utils.pipeline.run_pipeline", failing)
    assert main([]) == 2
    assert said in capsys.readouterr().err


def test_a_mistake_of_the_code_is_shown_whole(in_empty_folder, monkeypatch):
    def wrong(profile, **settings):
        raise AttributeError("no such thing")

    monkeypatch.setattr("rerank_utils.pipeline.run_pipeline", wrong)
    with pytest.raises(AttributeError):
        main([])


def test_help_names_every_way_in(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    flags = [
        "profile",
        "collection",
        "split",
        "queries",
        "embedder",
        "pooling",
        "instruction",
        "reranker",
        "max-length",
        "depth",
        "in-pieces",
        "backend",
        "dtype",
        "output",
    ]
    assert all(f"--{flag}" in text for flag in flags)
    assert max(map(len, text.splitlines())) <= 100


def test_the_environment_variable_chooses_the_profile(monkeypatch):
    monkeypatch.delenv("RERANK_PROFILE", raising=False)
    assert get_profile().name == "offline"
    monkeypatch.setenv("RERANK_PROFILE", "msmarco")
    assert get_profile().embedder == "BAAI/bge-base-en-v1.5"
    assert get_profile("offline").name == "offline"


def test_the_msmarco_profile_is_the_guide():
    profile = get_profile("msmarco")
    assert profile.reranker == "BAAI/bge-reranker-large" and profile.pooling == "cls"
    assert profile.instruction == INSTRUCTION and INSTRUCTION.endswith(": ")


def test_another_embedder_takes_no_instruction_from_the_profile():
    options = build_parser().parse_args(
        ["--profile", "msmarco", "--embedder", "x", "--pooling", "mean"]
    )
    profile = chosen_profile(options)
    assert (profile.embedder, profile.pooling, profile.instruction) == ("x", "mean", None)


def test_an_embedder_of_the_table_brings_its_pooling_and_instruction():
    options = build_parser().parse_args(["--embedder", "BAAI/bge-small-en-v1.5"])
    profile = chosen_profile(options)
    assert (profile.pooling, profile.instruction) == ("cls", INSTRUCTION)
    options = build_parser().parse_args(["--embedder", "BAAI/bge-m3"])
    assert chosen_profile(options).instruction is None


def test_long_documents_are_cut_off_unless_pieces_are_asked_for():
    parser = build_parser()
    assert not chosen_profile(parser.parse_args([])).in_pieces
    assert chosen_profile(parser.parse_args(["--in-pieces"])).in_pieces


def test_named_models_cut_at_max_length_and_packaged_ones_where_they_were_made_to():
    def lengths(*arguments):
        profile = chosen_profile(build_parser().parse_args(arguments))
        return profile.embedder_length, profile.reranker_length

    assert lengths() == (256, 128)
    assert lengths("--reranker", "x") == (256, 512)
    assert lengths("--reranker", "x", "--max-length", "64") == (256, 64)
    with pytest.raises(ValueError, match="--max-length is for models"):
        lengths("--max-length", "64")
    assert lengths("--embedder", "x", "--pooling", "cls") == (512, 128)


def test_the_offline_profile_asks_200_queries_and_all_with_0():
    def queries(*arguments):
        return chosen_profile(build_parser().parse_args(arguments)).queries

    assert (queries(), queries("--queries", "7"), queries("--queries", "0")) == (200, 7, None)
    assert chosen_profile(build_parser().parse_args([])).depth == 50


def test_distractors_are_a_hundred_thousand_passages(monkeypatch):
    asked = []
    monkeypatch.setattr("rerank_utils.profiles.load_msmarco", lambda **given: asked.append(given))
    get_profile("msmarco-distractors").load()
    assert asked == [{"distractors": 100_000}]


def test_an_unknown_profile_is_refused():
    for name in ("nonsense", "beir:"):
        with pytest.raises(ValueError, match="Unknown profile"):
            get_profile(name)


def test_hub_names_stay_as_they_are():
    assert locate("BAAI/bge-reranker-base") == "BAAI/bge-reranker-base"
