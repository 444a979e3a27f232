"""Each benchmark runs on a small piece of its work and leaves a table and a JSON."""

import importlib
import json
import random
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rerank_utils.mining import read_jsonl
from rerank_utils.training import Trainer
from rerank_utils.training_recipe import Recipe

FOLDER = Path(__file__).parent.parent / "benchmarks"
SMALL = Recipe(
    teachers=1,
    tune_steps=1,
    tune_batch=4,
    docstrings=60,
    excerpts=2,
    mixtures=20,
    rank=2,
    max_length=32,
    mined_ranks=30,
)


@pytest.fixture
def benchmark(monkeypatch, tmp_path):
    """Run one in an empty folder; gives what it wrote."""
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RERANK_CACHE", str(tmp_path / "cache"))

    def run(name: str, arguments: str) -> dict:
        importlib.import_module(name).main(arguments.split())
        (path,) = (tmp_path / "artifacts" / "benchmarks").glob(f"{name}*.json")
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"/(?:home|root|tmp|work|usr)/|[A-Z]:\\\\", text)
        found = json.loads(text)
        assert {"processor", "cores", "versions", "torch threads"} <= found["machine"].keys()
        return found

    return run


def test_rerank_cpu(benchmark, tiny_reranker_folder, capsys):
    sizes = "--queries 2 --depth 4 --rounds 2 --max-length 512"
    found = benchmark("rerank_cpu", f"--reranker {tiny_reranker_folder} {sizes}")
    assert found["facts"]["pairs"] == 8 and found["facts"]["tokens"] > 8 * 10
    rows = {row["what"]: row for row in found["rows"]}
    assert {"ours, torch float32", "ours, onnx int8", "ours, openvino float32"} <= rows.keys()
    assert all(row["slowest"] <= row["pairs/s"] <= row["fastest"] for row in rows.values())
    for name in ("ours, torch float32", "CrossEncoder.predict, batch 8"):
        assert rows[name]["largest difference"] < 1e-4
    assert "| what | pairs/s |" in capsys.readouterr().out


def test_precision(benchmark, tiny_reranker_folder):
    sizes = "--queries 3 --depth 6 --max-length 128"
    found = benchmark("precision", f"--reranker {tiny_reranker_folder} {sizes}")
    rows = {row["precision"]: row for row in found["rows"]}
    assert rows["torch float32"]["largest change"] == 0
    assert 0 < rows["onnx int8"]["mean change of a logit"] <= rows["onnx int8"]["largest change"]


def test_half_depth(benchmark, tiny_reranker_folder, small_training, monkeypatch, tmp_path):
    """Mined and distilled in two steps, both ways; a second call trains nothing again."""
    half_depth = importlib.import_module("half_depth")
    Trainer(SMALL, tmp_path / "training")
    sizes = f"--reranker {tiny_reranker_folder} --steps 2 --score-steps 1 --queries 3"
    found = benchmark("half_depth", f"{tmp_path / 'training'} {sizes}")
    teacher, *students = found["rows"]
    assert teacher["share of the teacher"] == teacher["x teacher"] == 1
    ways = ["half, as cut", "half, layers matched", "half, scores alone"]
    assert [student["reranker"] for student in students] == ways
    groups = read_jsonl(tmp_path / "training" / "half_depth" / "train-8.jsonl")
    assert len(groups) == 2 * half_depth.BATCH
    for group in groups:
        assert len(group.neg) == SMALL.group - 1
        assert group.pos[0] not in group.neg
    monkeypatch.setattr(half_depth, "draw_groups", None)
    again = benchmark("half_depth", f"{tmp_path / 'training'} {sizes}")
    assert [row["nDCG@10"] for row in again["rows"]] == [r["nDCG@10"] for r in found["rows"]]


def test_recipe(benchmark, small_training, monkeypatch, tmp_path):
    """Choices differ in what they name, begin alike, and are trained and scored once."""
    recipe = importlib.import_module("recipe")
    one_of_each = {"queries_per_step": 3, "reports_per_step": 1, "sentences_per_step": 1}
    small = replace(SMALL, **one_of_each, log_every=1)
    trainer = Trainer(small, tmp_path / "training")
    known = recipe.choices(small, trainer.data)
    numbers = [list(known).index(name) for name in ("other draws", "three layers")]
    fields = [name for name in known if name.endswith(" alone")]
    sizes = f"{tmp_path / 'training'} --pairs 144 --queries 3 --only"
    found = benchmark("recipe", f"{sizes} {numbers[0]} {numbers[1]} {list(known).index(fields[0])}")
    first, *others = found["rows"]
    assert [line["choice"] for line in others] == ["other draws", "three layers", fields[0]]
    assert "p" not in first and all(-1 <= line["difference"] <= 1 for line in others)
    assert len({line["divergence"] for line in found["rows"]}) == 4
    kept = tmp_path / "training" / "choices" / "144"
    depths = {
        path.parents[1].name: json.loads(path.read_text(encoding="utf-8"))["num_hidden_layers"]
        for path in kept.glob("*/merged/config.json")
    }
    assert depths.pop("three_layers") == 3 and set(depths.values()) == {6}

    monkeypatch.setattr(Trainer, "train", None)
    kept_scores = {path: path.read_bytes() for path in kept.glob("*/scores-*")}
    again = benchmark("recipe", f"{sizes} {numbers[0]}")
    assert again["rows"] == found["rows"][:2]
    assert len(kept_scores) == 4  # one a choice, and nothing was added to them
    assert all(path.read_bytes() == before for path, before in kept_scores.items())
    with pytest.raises(ValueError, match=r"no choice 99\. There are: 0 the recipe, 1 other draws"):
        recipe.chosen(known, [99])


def test_groups_of_another_size_make_as_many_pairs(benchmark):
    """In the proportions of the recipe, as far as whole numbers allow."""
    recipe = importlib.import_module("recipe")
    usual = Recipe()
    for factor in (0.5, 2):
        other = Recipe(**recipe._groups(usual, factor))
        assert other.group == usual.group * factor
        assert other.group * other.queries_per_step == usual.group * usual.queries_per_step


def test_groups_with_several_right_texts(benchmark, small_training, tmp_path):
    """As large as others; the further texts are of the right weakness, and none has the query."""
    recipe = importlib.import_module("recipe")
    trainer = Trainer(SMALL, tmp_path / "training")
    data, teacher = trainer.data, trainer.encoders.teacher()
    usual = trainer.candidates(teacher)
    found = recipe.several_right(data, teacher, usual, 3)
    asked = [*data.reports[:20], *data.sentences[:200], *data.summaries[:5]]
    more = []
    for query in asked:
        columns, scores = trainer.group(query, found[query], random.Random(0))
        assert len(columns) == len(scores) == SMALL.group
        assert scores == pytest.approx(teacher.scores([query])[0][columns].tolist(), abs=1e-4)
        documents = [data.ids[column] for column in columns]
        right = data.queries[query].positives
        further = [d for d in documents if data.owners[d] & right and d not in right]
        assert not any(data.queries[query].text in data.documents[d] for d in further)
        more.append(len(further))
    assert np.mean(more[:20]) > 1.5 and max(more) == 3 and more[-5:] == [0] * 5


def test_summary_writes_both_pages(benchmark, tiny_reranker_folder, tmp_path):
    sizes = "--queries 2 --depth 4 --rounds 1 --max-length 512"
    benchmark("rerank_cpu", f"--reranker {tiny_reranker_folder} {sizes}")
    summary = importlib.import_module("summary")
    (tmp_path / "benchmarks").mkdir()
    for page in (summary.README, summary.PAGE):
        page.write_text("\n".join(["before", *summary.MARKERS, "after"]), encoding="utf-8")
    assert summary.main() == 0
    table = summary.README.read_text(encoding="utf-8")
    assert table.startswith("before") and table.endswith("after")
    assert table.count("FlagReranker, flat") == 1 and "| ours, torch float32 |" in table
    assert "FlagReranker, flat, batch 8" in summary.PAGE.read_text(encoding="utf-8")


def test_summary_without_measurements(benchmark, capsys):
    assert importlib.import_module("summary").main() == 1
    assert "run benchmarks/rerank_cpu.py first" in capsys.readouterr().out


def test_embed_cpu(benchmark):
    found = benchmark("embed_cpu", "--documents 6 --rounds 1")
    assert {row["what"] for row in found["rows"]} >= {"ours", "FlagModel.encode, batch 32"}
    assert min(row["least cosine with ours"] for row in found["rows"]) > 0.9999


def test_gpu_on_a_cpu_with_a_tiny_model(benchmark):
    found = benchmark("gpu", "--device cpu --shapes tiny --pairs 8 --rounds 1")
    assert {row["lengths"] for row in found["rows"]} == {"CWE's lengths", "512 tokens"}
    assert all(row["pairs/s"] > 0 and row["MFU"] is None for row in found["rows"])


def test_without_a_gpu_it_says_so(benchmark, monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ValueError):  # nothing is written
        benchmark("gpu", "")
    assert "no GPU" in capsys.readouterr().out


@pytest.mark.parametrize(("shape", "gflop"), [("278M", 96.6), ("568M", 335)])
def test_work_of_a_pair_is_the_formula(monkeypatch, shape, gflop):
    """Figures worked out by hand for 512 tokens, from the formula in the docstring."""
    monkeypatch.syspath_prepend(str(FOLDER))
    gpu = importlib.import_module("gpu")
    sizes = gpu.SHAPES[shape]
    config = type("Config", (), {**sizes, "intermediate_size": 4 * sizes["hidden_size"]})
    assert gpu.flops(config, np.array([512])) / 1e9 == pytest.approx(gflop, rel=0.005)


def test_search(benchmark):
    found = benchmark("search", "--sizes 5000 --queries 20 --rounds 1")
    rows = {row["index"]: row for row in found["rows"]}
    assert rows["Flat"]["recall@10"] == 1
    recalls = [rows[f"IVF nprobe {n}"]["recall@10"] for n in (1, 4, 16, 64)]
    assert recalls == sorted(recalls) and recalls[0] < recalls[-1]


def test_growth(benchmark, tiny_reranker_folder):
    sizes = "--documents 2 --pairs 4 --rounds 1"
    found = benchmark("growth", f"--reranker {tiny_reranker_folder} {sizes}")
    stages = [row["stage"] for row in found["rows"]]
    assert stages == ["embed documents", "index and search", "rerank pairs"]
    assert all(np.isfinite(row["slope"]) for row in found["rows"])


@pytest.mark.parametrize("interrupted, done", [(2, 1), (3, 2)])
def test_an_interrupt_keeps_the_whole_rounds(monkeypatch, interrupted, done):
    monkeypatch.syspath_prepend(str(FOLDER))
    bench = importlib.import_module("bench")
    calls = []

    def slow():
        calls.append("slow")
        if calls.count("slow") == interrupted + 1:  # the first call warms up
            raise KeyboardInterrupt

    timings = bench.take_turns({"quick": lambda: 1, "slow": slow}, rounds=3)
    assert bench.rounds_done(timings) == done
    assert len({len(timing.seconds) for timing in timings.values()}) == 1


def test_an_interrupt_in_the_first_round_ends_the_run(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    bench = importlib.import_module("bench")

    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bench.take_turns({"stop": stop}, rounds=2, warm_up={})


def test_an_interrupt_keeps_the_parts_that_were_measured(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    bench = importlib.import_module("bench")

    def parts(whole):
        yield from [[{"row": number}] for number in range(whole)]
        raise KeyboardInterrupt

    assert bench.gather(parts(2)) == [{"row": 0}, {"row": 1}]
    with pytest.raises(KeyboardInterrupt):
        bench.gather(parts(0))
