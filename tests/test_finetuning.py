"""Fine-tuning with FlagEmbedding's trainer: it trains, resumes exactly, and refuses in words."""

import logging
import math
import warnings
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from rerank_utils import finetuning, training_folder
from rerank_utils.finetuning import (
    CollapseWarning,
    finetune,
    fresh_reranker,
    read_log,
)
from rerank_utils.mining import Group, write_jsonl
from rerank_utils.reranking import load_reranker, score_pairs
from rerank_utils.tiny import build_tiny

SMALL = {
    "rate": 3e-3,
    "batch": 2,
    "group": 4,
    "query_length": 16,
    "passage_length": 16,
    "log_every": 1,
    "device": "cpu",
}


@pytest.fixture
def train_file(groups, tmp_path):
    return write_jsonl(groups, tmp_path / "train.jsonl")


def weights(folder):
    return load_file(folder / "model.safetensors")


def test_the_rate_rises_and_falls_in_straight_lines(tiny_reranker_folder, train_file, tmp_path):
    finetune(tiny_reranker_folder, train_file, tmp_path / "out", steps=10, warmup=0.2, **SMALL)
    rates = [row["rate"] for row in read_log(tmp_path / "out")]
    assert max(rates) == SMALL["rate"] and rates[0] < SMALL["rate"]
    np.testing.assert_allclose(np.diff(rates[2:]), -SMALL["rate"] / 8, rtol=1e-6)
    assert 0 <= rates[-1] <= SMALL["rate"] / 8 + 1e-12


def test_it_trains_and_ends_with_a_reranker(tiny_reranker_folder, train_file, tmp_path, capfd):
    handlers = list(logging.getLogger().handlers)
    model = finetune(tiny_reranker_folder, train_file, tmp_path / "out", steps=3, **SMALL)
    shown = capfd.readouterr()
    lines = [line for line in (shown.out + shown.err).replace("\r", "\n").split("\n") if line]
    assert lines and all(line.startswith("train:") for line in lines)
    assert "3/3" in lines[-1] and "loss=" in lines[-1]
    log = read_log(tmp_path / "out")
    assert [row["step"] for row in log] == [1, 2, 3]
    assert all(math.isfinite(row["loss"]) for row in log)
    assert logging.getLogger().handlers == handlers

    reranker = load_reranker(model, max_length=32, device="cpu")
    assert reranker.tokenizer.model_max_length == 512
    pairs = [("what is apple", "some apple"), ("what is apple", "stone river")]
    ours = score_pairs(reranker, pairs)
    np.testing.assert_allclose(ours, reranker.compute_score(pairs), atol=1e-5)
    assert not np.allclose(ours, score_pairs(load_reranker(tiny_reranker_folder, 32, "cpu"), pairs))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "log.jsonl",
        "model",
        "recipe.json",
    ]
    before = (model / "model.safetensors").stat().st_mtime_ns
    assert finetune(tiny_reranker_folder, train_file, tmp_path / "out", steps=3, **SMALL) == model
    assert (model / "model.safetensors").stat().st_mtime_ns == before


def test_an_interrupt_keeps_a_checkpoint_and_changes_nothing(
    tiny_reranker_folder, train_file, tmp_path, monkeypatch
):
    from rerank_utils import trainer

    def train(name, save_every=3):
        out = tmp_path / name
        return finetune(
            tiny_reranker_folder, train_file, out, steps=11, save_every=save_every, **SMALL
        )

    whole = train("whole")  # 4 batches an epoch: the interrupt falls into the second
    compute = trainer.MendedTrainer.compute_loss

    def interrupted(self, *rest, **options):
        if self.state.global_step == 7:
            raise KeyboardInterrupt
        return compute(self, *rest, **options)

    monkeypatch.setattr(trainer.MendedTrainer, "compute_loss", interrupted)
    with pytest.raises(KeyboardInterrupt, match=r"after step 7; the checkpoint of step 6 is kept"):
        train("broken")
    monkeypatch.setattr(trainer.MendedTrainer, "compute_loss", compute)
    with pytest.raises(ValueError, match=r"other arguments \(rate 0.003, now 0.001\)"):
        finetune(
            tiny_reranker_folder,
            train_file,
            tmp_path / "broken",
            steps=11,
            **(SMALL | {"rate": 1e-3}),
        )
    saved, save = [], trainer.MendedTrainer._save_checkpoint

    def noted(self, *given):
        saved.append(self.state.global_step)
        save(self, *given)

    monkeypatch.setattr(trainer.MendedTrainer, "_save_checkpoint", noted)
    resumed = weights(train("broken", save_every=1))  # what may change, does
    assert saved == [7, 8, 9, 10, 11]
    for name, value in weights(whole).items():
        np.testing.assert_array_equal(value, resumed[name], err_msg=name)
    assert read_log(tmp_path / "broken") == read_log(tmp_path / "whole")


def test_a_full_disk_leaves_the_last_checkpoint(
    tiny_reranker_folder, train_file, tmp_path, monkeypatch
):
    from rerank_utils import trainer

    def train():
        return finetune(
            tiny_reranker_folder, train_file, tmp_path / "out", steps=4, save_every=2, **SMALL
        )

    save = trainer.MendedTrainer._save_optimizer_and_scheduler

    def full(self, folder):
        if self.state.global_step == 4:  # the weights of this step are written by now
            raise OSError(28, "No space left on device")
        return save(self, folder)

    monkeypatch.setattr(trainer.MendedTrainer, "_save_optimizer_and_scheduler", full)
    with pytest.raises(OSError, match=r"Step 4 .* No space left .* step 2 is whole"):
        train()
    kept = [path.name for path in (tmp_path / "out" / "checkpoints").iterdir()]
    assert kept == ["checkpoint-2"]
    monkeypatch.undo()
    assert (train() / "model.safetensors").exists()


@pytest.mark.parametrize("name", ["log.jsonl", "recipe.json"])
def test_a_full_disk_leaves_small_files_whole(
    tiny_reranker_folder, train_file, tmp_path, monkeypatch, name
):
    def train():
        return finetune(
            tiny_reranker_folder, train_file, tmp_path / "out", steps=4, save_every=2, **SMALL
        )

    write = Path.write_bytes

    def full(self, content):
        if self.name.startswith(f"{name}.") and self.suffix == ".tmp":
            write(self, content[:5])
            raise OSError(28, "No space left on device")
        return write(self, content)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(OSError, match=rf"{name} could not be written .* Make room"):
            train()
    assert not list((tmp_path / "out").glob("*.tmp"))
    assert train().exists()
    before = (tmp_path / "out" / "recipe.json").stat().st_mtime_ns
    train()
    assert (tmp_path / "out" / "recipe.json").stat().st_mtime_ns == before  # not at risk again


@pytest.mark.parametrize("name", ["lines.txt", "run[1].jsonl"])
def test_a_training_file_can_have_any_name(tiny_reranker_folder, groups, tmp_path, name):
    path = write_jsonl(groups, tmp_path / name)
    assert finetune(tiny_reranker_folder, path, tmp_path / "out", steps=1, **SMALL).exists()


def test_training_runs_on_a_gpu_of_nvidia_or_on_the_cpu(monkeypatch):
    for best, chosen in (("mps", "cpu"), ("cpu", "cpu"), ("cuda:0", "cuda:0")):
        monkeypatch.setattr(training_folder, "best_device", lambda best=best: best)
        assert training_folder.training_device(None) == chosen
    with pytest.raises(ValueError, match="device is 'mps': training runs on 'cpu' or 'cuda:0'"):
        training_folder.training_device("mps")


def test_checkpoints_that_an_interrupt_left_are_removed(tiny_reranker_folder, train_file, tmp_path):
    def train():
        finetune(tiny_reranker_folder, train_file, tmp_path / "out", steps=1, **SMALL)

    train()
    left = tmp_path / "out" / "checkpoints"
    left.mkdir()
    train()
    assert not left.exists()


def test_a_half_precision_base_is_trained_in_single(tiny_reranker_folder, train_file, tmp_path):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    half = tmp_path / "half"
    model = AutoModelForSequenceClassification.from_pretrained(tiny_reranker_folder)
    model.half().save_pretrained(half)
    AutoTokenizer.from_pretrained(tiny_reranker_folder).save_pretrained(half)
    trained = weights(finetune(half, train_file, tmp_path / "out", steps=1, **SMALL))
    assert {value.dtype for value in trained.values()} == {np.dtype("float32")}


def test_a_loss_that_is_no_number_stops_the_training(tiny_reranker_folder, groups, tmp_path):
    scored = [
        Group(g.query, g.pos, g.neg, [3e38] * len(g.pos), [-3e38] * len(g.neg)) for g in groups
    ]
    path = write_jsonl(scored, tmp_path / "train.jsonl")
    options = SMALL | {"rate": 1e30}
    with pytest.raises(FloatingPointError, match=r"at step \d.*lower rate"):
        finetune(tiny_reranker_folder, path, tmp_path / "out", steps=8, **options)
    assert not (tmp_path / "out" / "model").exists()


def test_a_rate_that_is_too_high_is_seen_in_the_loss(tiny_reranker_folder, train_file, tmp_path):
    with pytest.warns(CollapseWarning, match=r"alike has 1\.39\. The rate of 1e\+00"):
        finetune(
            tiny_reranker_folder, train_file, tmp_path / "out", steps=30, **SMALL | {"rate": 1.0}
        )


def test_a_loss_that_falls_is_not_warned_of():
    log = [{"step": i, "loss": 2.0 - i / 10, "rate": 1e-5} for i in range(10)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        finetuning._warn_of_collapse(log, math.log(8))
        wobbling = [dict(row, loss=0.3 + row["step"] % 4 / 20) for row in log]
        finetuning._warn_of_collapse(wobbling, math.log(8))
    with pytest.warns(CollapseWarning, match="rose from 1.15 to 1.95"):
        finetuning._warn_of_collapse([dict(row, loss=3.1 - row["loss"]) for row in log], 2.1)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"batch": 10}, "batch is 10, but .* has 9 lines"),
        ({"group": 1}, "group is 1"),
        ({"distil": True}, "9 of 9 lines .* teacher_scores"),
        ({"epochs": 1.0}, "either steps or epochs"),
        ({"steps": 0}, "makes 0 steps"),
        ({"query_length": 300, "passage_length": 300}, "window of 600 tokens.* 8 to 512"),
        ({"passage_length": 4}, "each must be at least 8"),
        ({"rate": 0.0}, "rate is 0.0"),
        ({"rate": float("nan")}, "rate is nan"),
        ({"steps": 1.5}, "makes 1.5 steps"),
        ({"warmup": 2.0}, "warmup 2.0"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"dropout": -0.5}, "dropout is -0.5"),
        ({"device": "cuda:1"}, "CUDA_VISIBLE_DEVICES"),
    ],
)
def test_bad_arguments_get_a_sentence(
    tiny_reranker_folder, train_file, tmp_path, changed, sentence
):
    with pytest.raises(ValueError, match=sentence):
        finetune(
            tiny_reranker_folder, train_file, tmp_path / "out", **{"steps": 1} | SMALL | changed
        )
    assert not (tmp_path / "out").exists()


def test_a_bad_line_and_a_foreign_folder_are_refused(tiny_reranker_folder, groups, tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text('{"query": "a", "pos": [], "neg": ["b"]}\n')
    with pytest.raises(ValueError, match=r"bad.jsonl, line 1: 'pos' holds no text"):
        finetune(tiny_reranker_folder, path, tmp_path / "out", steps=1, **SMALL)
    good = write_jsonl(groups, tmp_path / "good.jsonl")
    with pytest.raises(ValueError, match="is not empty and holds no training"):
        finetune(tiny_reranker_folder, good, tmp_path, steps=1, **SMALL)


def test_a_classifier_of_several_classes_is_no_base(tiny_reranker_folder, train_file, tmp_path):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    classes = tmp_path / "classes"
    AutoModelForSequenceClassification.from_pretrained(
        tiny_reranker_folder, num_labels=3, ignore_mismatched_sizes=True
    ).save_pretrained(classes)
    AutoTokenizer.from_pretrained(tiny_reranker_folder).save_pretrained(classes)
    with pytest.raises(ValueError, match="gives 3 numbers for a pair"):
        finetune(classes, train_file, tmp_path / "out", steps=1, **SMALL)
    assert not (tmp_path / "out").exists()


def test_too_few_negatives_for_a_group_are_said(tiny_reranker_folder, train_file, tmp_path):
    with pytest.warns(UserWarning, match=r"9 of 9 lines have fewer than 7 negatives"):
        finetune(
            tiny_reranker_folder, train_file, tmp_path / "out", steps=1, **SMALL | {"group": 8}
        )


def test_a_fresh_head_is_the_same_each_time(tiny_reranker_folder, tmp_path):
    from rerank_utils.bundled import minilm_path

    folders = [fresh_reranker(minilm_path(), tmp_path / name, 128) for name in "ab"]
    first, second = (weights(folder)["classifier.weight"] for folder in folders)
    np.testing.assert_array_equal(first, second)
    assert load_reranker(folders[0], 128, "cpu").tokenizer.model_max_length == 128


def test_a_head_is_fresh_or_refused(tiny_reranker_folder, tmp_path):
    with pytest.raises(ValueError, match="has a head already"):
        fresh_reranker(tiny_reranker_folder, tmp_path / "out", 128)
    encoder = build_tiny("bert-embedder", tmp_path / "encoder")
    with pytest.raises(ValueError, match="the encoder itself"):
        fresh_reranker(encoder, encoder, 128)
