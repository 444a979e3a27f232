"""Distillation: a student is cut, learns from scores or layers, resumes, refuses in words."""

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertForSequenceClassification,
    PreTrainedTokenizerBase,
)

from rerank_utils import matching
from rerank_utils.distillation import half_depth, match_layers, teacher_scores
from rerank_utils.encoder import FirstTokenScorer
from rerank_utils.finetuning import finetune, read_log
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
MATCH = {"rate": 3e-3, "batch": 2, "max_length": 32, "log_every": 1, "half": False, "device": "cpu"}


def weights(folder):
    return load_file(folder / "model.safetensors")


def divergence(reranker, groups):
    """Mean KL of the model's distribution over each group from the teacher's."""
    from scipy.special import log_softmax, softmax

    total = 0.0
    for group in groups:
        texts = [group.pos[0], *group.neg]
        ours = log_softmax(score_pairs(reranker, [(group.query, text) for text in texts]))
        aim = np.array([group.pos_scores[0], *group.neg_scores])
        total += float((softmax(aim) * (log_softmax(aim) - ours)).sum())
    return total / len(groups)


def test_distillation_brings_the_student_nearer_to_its_teacher(tiny_xlmr_folder, groups, tmp_path):
    untaught = write_jsonl(groups, tmp_path / "labels.jsonl")
    options = SMALL | {"group": 6, "rate": 3e-3, "dropout": 0.0}
    taught = finetune(tiny_xlmr_folder, untaught, tmp_path / "teacher", epochs=10, **options)
    teacher = load_reranker(taught, 32, "cpu")
    scored = teacher_scores(groups, teacher)
    pair = (scored[0].query, scored[0].neg[2])
    assert scored[0].neg_scores[2] == pytest.approx(teacher.compute_score([pair])[0], abs=1e-5)
    softer = teacher_scores(groups, teacher, temperature=4.0)
    assert softer[0].pos_scores[0] == pytest.approx(scored[0].pos_scores[0] / 4)

    path = write_jsonl(scored, tmp_path / "train.jsonl")
    student = half_depth(tiny_xlmr_folder, tmp_path / "student")
    model = finetune(student, path, tmp_path / "out", epochs=10, distil=True, **options)
    after = divergence(load_reranker(model, 32, "cpu"), scored)
    assert after < 0.8 * divergence(load_reranker(student, 32, "cpu"), scored)


def test_the_distillation_loss_is_what_is_documented(tiny_reranker_folder, groups, tmp_path):
    from scipy.special import log_softmax, softmax

    few = [Group(g.query, g.pos[:1], g.neg[:3]) for g in groups[:2]]
    scored = teacher_scores(few, load_reranker(tiny_reranker_folder, 32, "cpu"), temperature=0.5)
    path = write_jsonl(scored, tmp_path / "train.jsonl")
    options = SMALL | {"dropout": 0.0, "distil": True}
    finetune(tiny_reranker_folder, path, tmp_path / "out", steps=1, **options)
    expected = 0.0
    for group in scored:
        aim = np.array(group.pos_scores + group.neg_scores)
        ours = log_softmax(aim * 0.5)
        expected += (-ours[0] - (softmax(aim) * ours).sum()) / len(scored)
    assert read_log(tmp_path / "out")[0]["loss"] == pytest.approx(expected, rel=1e-4)


def test_half_depth_keeps_every_second_layer_and_the_last(tmp_path):
    deep = build_tiny("bert-reranker", tmp_path / "deep", num_hidden_layers=5)
    old = weights(deep)
    for layers, kept in ((None, [0, 2, 4]), ([1, 3], [1, 3])):
        folder = half_depth(deep, tmp_path / f"half-{len(kept)}", layers)
        new = weights(folder)
        for place, layer in enumerate(kept):
            name = "bert.encoder.layer.{}.output.dense.weight"
            np.testing.assert_array_equal(new[name.format(place)], old[name.format(layer)])
        np.testing.assert_array_equal(new["classifier.weight"], old["classifier.weight"])
        assert load_reranker(folder, 32, "cpu").model.config.num_hidden_layers == len(kept)
    with pytest.raises(ValueError, match="layers from 0 to 4"):
        half_depth(deep, tmp_path / "no", [3, 1])
    with pytest.raises(ValueError, match="the source itself"):
        half_depth(deep, deep)


def test_half_a_model_is_never_left(tmp_path, monkeypatch):
    deep = build_tiny("bert-reranker", tmp_path / "deep", num_hidden_layers=4)
    kept = half_depth(deep, tmp_path / "half")
    (kept / "notes.txt").write_text("mine")
    before = weights(kept)

    def interrupted(self, folder, **rest):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:  # the weights are written before the tokenizer
        patch.setattr(PreTrainedTokenizerBase, "save_pretrained", interrupted)
        for folder in (kept, tmp_path / "new"):
            with pytest.raises(KeyboardInterrupt):
                half_depth(deep, folder, [0])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep", "half"]
    assert weights(kept).keys() == before.keys()
    half_depth(deep, kept, [0])
    assert weights(kept).keys() < before.keys()
    assert (kept / "notes.txt").read_text() == "mine"


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    return build_tiny("bert-reranker", tmp_path_factory.mktemp("deep"), num_hidden_layers=4)


@pytest.fixture(scope="module")
def train_file(groups, tmp_path_factory):
    return write_jsonl(groups, tmp_path_factory.mktemp("lines") / "train.jsonl")


@pytest.mark.parametrize("kind", ["bert-reranker", "xlm-roberta-reranker"])
def test_matching_brings_the_student_nearer_to_its_teacher(kind, groups, train_file, tmp_path):
    teacher = build_tiny(kind, tmp_path / "teacher", num_hidden_layers=4)
    options = MATCH | {"epochs": 15}
    model = match_layers(teacher, train_file, tmp_path / "out", **options)
    cut = half_depth(teacher, tmp_path / "cut")
    pairs = [(group.query, text) for group in groups for text in [*group.pos, *group.neg]]
    scores = [score_pairs(load_reranker(m, 32, "cpu"), pairs) for m in (teacher, cut, model)]
    before, after = (np.square(student - scores[0]).mean() for student in scores[1:])
    assert after < 0.5 * before
    config = AutoModelForSequenceClassification.from_pretrained(model).config
    assert config.num_hidden_layers == 2
    log = read_log(tmp_path / "out")
    assert len(log) == 60 and log[-1]["loss"] < 0.7 * log[0]["loss"]
    assert not (tmp_path / "out" / "state.pt").exists()
    old, new = weights(teacher), weights(model)
    frozen = [name for name in new if ".embeddings." in name]
    assert frozen
    for name in frozen:
        np.testing.assert_array_equal(new[name], old[name], err_msg=name)
    assert match_layers(teacher, train_file, tmp_path / "out", **options) == model


@pytest.mark.parametrize("known", [True, False])
def test_the_matching_loss_is_what_is_documented(deep, groups, monkeypatch, known):
    """Against each pair run alone, where nothing is padded; also for a family not known."""
    from scipy.special import log_softmax, softmax

    monkeypatch.setattr(FirstTokenScorer, "supports", lambda model: known)
    teacher = AutoModelForSequenceClassification.from_pretrained(deep).eval()
    tokenizer = AutoTokenizer.from_pretrained(deep)
    settings = {"layers": [0, 3], "steps": 1, "rate": 1e-3, "warmup": 0, "max_length": 32}
    few = [Group(g.query, g.pos[:1], g.neg[:2]) for g in groups[:2]]  # six pairs: two a part
    found = matching.Matching(teacher, tokenizer, settings | {"half": False})
    found.student.eval()
    logits, states = [], []
    for group in few:
        for text in [*group.pos, *group.neg]:
            inputs = tokenizer(group.query, text, return_tensors="pt")
            with torch.no_grad():
                runs = [m(**inputs, output_hidden_states=True) for m in (found.student, teacher)]
            logits.append([run.logits.item() for run in runs])
            states.append([[h[0].numpy() for h in run.hidden_states] for run in runs])
    order = np.argsort([len(ours[0]) for ours, _ in states], kind="stable")
    apart = 0.0
    for part in np.array_split(order, 3):
        first = [
            np.concatenate([states[i][m][layer] for i in part]) for m, layer in ((0, 1), (1, 1))
        ]
        last = [np.stack([states[i][m][layer][0] for i in part]) for m, layer in ((0, 2), (1, 4))]
        for ours, theirs in (first, last):
            apart += np.square(ours - theirs).mean() / theirs.var(ddof=1) / 3
    ours, theirs = np.array(logits).T.reshape(2, 2, 3)
    aim = softmax(theirs, axis=1)
    divergence = (aim * (np.log(aim) - log_softmax(ours, axis=1))).sum() / 2
    alone = divergence + 0.1 * np.square(ours - theirs).mean()
    assert found.loss(few).item() == pytest.approx(apart + alone, rel=1e-4)
    assert found.loss(few, follow=False).item() == pytest.approx(alone, rel=1e-4)


@pytest.mark.parametrize(("share", "expected"), [(0.5, [1, 1, 0, 0]), (0, [0] * 4), (1, [1] * 4)])
def test_the_layers_count_in_the_first_steps(
    deep, train_file, tmp_path, monkeypatch, share, expected
):
    follows, loss = [], matching.Matching.loss

    def noted(self, batch, follow):
        follows.append(follow)
        return loss(self, batch, follow)

    monkeypatch.setattr(matching.Matching, "loss", noted)
    match_layers(deep, train_file, tmp_path / "out", **MATCH, steps=4, layer_share=share)
    assert follows == expected


def test_a_student_with_all_layers_has_nothing_to_learn(deep, groups):
    teacher = AutoModelForSequenceClassification.from_pretrained(deep).eval()
    settings = {"layers": [0, 1, 2, 3], "steps": 1, "rate": 1e-3, "warmup": 0, "max_length": 32}
    same = matching.Matching(
        teacher, AutoTokenizer.from_pretrained(deep), settings | {"half": False}
    )
    assert same.loss(groups[:2]).item() == pytest.approx(0, abs=1e-6)


def test_a_student_goes_on_after_its_teacher_has_changed(deep, train_file, tmp_path):
    first = match_layers(deep, train_file, tmp_path / "first", **MATCH | {"epochs": 15})
    changed = AutoModelForSequenceClassification.from_pretrained(deep)
    with torch.no_grad():
        for weight in changed.parameters():
            weight.mul_(1.01)
    changed.save_pretrained(tmp_path / "changed")
    AutoTokenizer.from_pretrained(deep).save_pretrained(tmp_path / "changed")

    def train(name, **other):
        options = MATCH | {"steps": 2, "rate": 1e-6} | other
        return match_layers(tmp_path / "changed", train_file, tmp_path / name, **options)

    train("anew")
    model = train("on", student=first)
    anew, on = (read_log(tmp_path / name)[0]["loss"] for name in ("anew", "on"))
    assert on < 0.7 * anew
    new, kept = weights(model), weights(tmp_path / "changed")
    embeddings = [name for name in new if ".embeddings." in name]
    assert embeddings
    for name in embeddings:
        np.testing.assert_array_equal(new[name], kept[name], err_msg=name)
    with pytest.raises(ValueError, match=r"other arguments .student"):
        train("on")
    with pytest.raises(ValueError, match=r"student has 4 layers, or .* cut to layers \[1, 3\]"):
        train("odd", student=deep)
    assert not (tmp_path / "odd").exists()


def test_an_interrupted_matching_resumes_exactly(deep, train_file, tmp_path, monkeypatch):
    def train(name, **other):
        options = MATCH | {"steps": 7, "save_every": 3} | other
        return match_layers(deep, train_file, tmp_path / name, **options)

    whole, step = train("whole"), matching.Matching._step

    def interrupted(self, *given):
        if self.descent.schedule.last_epoch == 4:
            raise KeyboardInterrupt
        return step(self, *given)

    monkeypatch.setattr(matching.Matching, "_step", interrupted)
    with pytest.raises(KeyboardInterrupt, match="after step 4; the state of step 3 is kept"):
        train("broken")
    monkeypatch.setattr(matching.Matching, "_step", step)
    with pytest.raises(ValueError, match=r"other arguments \(rate 0.003, now 0.001\)"):
        train("broken", rate=1e-3)
    resumed = weights(train("broken"))
    for name, value in weights(whole).items():
        np.testing.assert_array_equal(value, resumed[name], err_msg=name)
    assert read_log(tmp_path / "broken") == read_log(tmp_path / "whole")


def test_a_full_disk_keeps_the_last_state(deep, train_file, tmp_path, monkeypatch):
    def train():
        options = MATCH | {"steps": 4, "save_every": 2}
        return match_layers(deep, train_file, tmp_path / "out", **options)

    save = torch.save

    def full(state, path):
        if state["step"] == 4:
            path.write_bytes(b"half of it")
            raise RuntimeError("PytorchStreamWriter failed writing file")
        save(state, path)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match=r"not be saved .* before, if anything, is kept. Make room"):
        train()
    monkeypatch.setattr(torch, "save", save)
    assert torch.load(tmp_path / "out" / "state.pt", weights_only=True)["step"] == 2
    assert not list((tmp_path / "out").glob("*.tmp"))
    assert train().exists()


def test_what_was_trained_is_not_lost_when_the_model_cannot_be_written(
    deep, train_file, tmp_path, monkeypatch
):
    def train():
        return match_layers(deep, train_file, tmp_path / "out", **MATCH | {"steps": 3})

    def full(self, folder):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(BertForSequenceClassification, "save_pretrained", full)
        with pytest.raises(OSError, match=r"could not be saved .* if anything, is kept"):
            train()
    monkeypatch.setattr(matching.Matching, "_step", None)  # nothing is trained twice
    assert train().exists()


def test_an_interrupt_before_the_first_step_is_told(deep, train_file, tmp_path, monkeypatch):
    def interrupted(*rest):
        raise KeyboardInterrupt

    monkeypatch.setattr(matching.Matching, "_batch", interrupted)
    with pytest.raises(KeyboardInterrupt, match="after step 0; no state was saved yet"):
        match_layers(deep, train_file, tmp_path / "out", **MATCH | {"steps": 3})


def test_a_half_precision_teacher_is_followed_in_single(deep, train_file, tmp_path):
    half = tmp_path / "half"
    AutoModelForSequenceClassification.from_pretrained(deep).half().save_pretrained(half)
    AutoTokenizer.from_pretrained(deep).save_pretrained(half)
    model = match_layers(half, train_file, tmp_path / "out", **MATCH | {"steps": 3})
    assert {value.dtype for value in weights(model).values()} == {np.dtype("float32")}
    cut = weights(half_depth(half, tmp_path / "cut"))  # as its source
    assert {value.dtype for value in cut.values()} == {np.dtype("float16")}


def test_what_is_no_reranker_is_refused(deep, train_file, tmp_path):
    embedder = build_tiny("bert-embedder", tmp_path / "embedder")
    classes = tmp_path / "classes"
    AutoModelForSequenceClassification.from_pretrained(
        deep, num_labels=3, ignore_mismatched_sizes=True
    ).save_pretrained(classes)
    AutoTokenizer.from_pretrained(deep).save_pretrained(classes)
    for folder, said in ((embedder, "no trained scoring head"), (classes, "gives 3 numbers")):
        with pytest.raises(ValueError, match=said):
            half_depth(folder, tmp_path / "half")
        with pytest.raises(ValueError, match=said):
            match_layers(folder, train_file, tmp_path / "out", **MATCH | {"steps": 1})
    assert not (tmp_path / "half").exists() and not (tmp_path / "out").exists()


@pytest.mark.parametrize("temperature", [0, -1, np.nan, np.inf])
def test_a_temperature_that_is_none_is_refused(groups, temperature):
    with pytest.raises(ValueError, match="temperature is"):
        teacher_scores(groups, None, temperature=temperature)


def test_bad_input_of_matching_is_refused_in_words(deep, train_file, tmp_path, monkeypatch):
    out = tmp_path / "out"
    for wrong, said in (
        ({"layers": [0, 7]}, "layers from 0 to 3"),
        ({"rate": 0}, "rate is 0"),
        ({"layer_share": 1.5}, "layer_share is 1.5"),
        ({"batch": 99}, "9 lines"),
        ({"max_length": 10_000}, "max_length"),
        ({"device": "tpu"}, "'tpu'"),
        ({"steps": None}, "either steps or epochs"),
    ):
        with pytest.raises(ValueError, match=said):
            match_layers(deep, train_file, out, **(MATCH | {"steps": 1} | wrong))
        assert not out.exists()
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"empty.jsonl"):
        match_layers(deep, tmp_path / "empty.jsonl", out, steps=1, **MATCH)
    nothing = torch.tensor(float("nan"))
    monkeypatch.setattr(matching.Matching, "loss", lambda *given: nothing)
    with pytest.raises(FloatingPointError, match="loss is nan at step 1"):
        match_layers(deep, train_file, out, steps=1, **MATCH)
