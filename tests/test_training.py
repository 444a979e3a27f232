"""What the bundled reranker was trained on, and that training can be interrupted."""

import json
import random
import shutil
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from peft import get_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from scipy.special import log_softmax, rel_entr, softmax
from transformers import AutoTokenizer, MPNetConfig, MPNetModel

from rerank_utils import (
    mpnet,
    teacher,
    training,
    training_curve,
    training_data,
    training_folder,
    tuning,
)
from rerank_utils.adapters import AdaptedScorer
from rerank_utils.bundled import ADAPTER, minilm_path
from rerank_utils.cwe import collect_reports, held_out, near_duplicates, read_catalogue, read_splits
from rerank_utils.embedding import embed_documents, load_embedder
from rerank_utils.lexical import search_bm25
from rerank_utils.pieces import cut_into_pieces
from rerank_utils.training import Trainer, pairs_at_once
from rerank_utils.training_data import training_documents
from rerank_utils.training_recipe import Recipe

CLASSIFIER = "base_model.model.classifier.modules_to_save.default.weight"
SMALL = Recipe(
    teachers=2,
    tune_steps=1,
    tune_batch=4,
    steps=4,
    queries_per_step=3,
    reports_per_step=1,
    sentences_per_step=1,
    docstrings=30,
    excerpts=2,
    mixtures=20,
    group=6,
    random_negatives=1,
    mined_ranks=20,
    mined_excerpts=1,
    mined_passages=1,
    mined_mixtures=1,
    warmup=1,
    distil_only=0.5,
    max_length=32,
    long_length=48,
    long_share=0.5,
    rank=2,
    save_every=2,
    snapshot_every=2,
    average_from=2,
    average_to=4,
    log_every=1,
)


def flags(recipe):
    """The recipe as the command line takes it."""
    return [
        part
        for name, value in asdict(recipe).items()
        for part in (f"--{name.replace('_', '-')}", str(value))
    ]


def test_nothing_held_out_takes_part(asked_in_training):
    queries = asked_in_training
    assert len(queries) > 4_000
    assert {held_out(d) for query in queries for d in query.positives} == {"train"}
    documents, owners = training_documents()
    assert len(documents) > 2_000 and documents.keys() == owners.keys()
    assert {held_out(w) for where in owners.values() for w in where} == {"train"}
    reports = {report.id: report for report in collect_reports(read_catalogue())}
    splits = read_splits()
    asked = [reports[q].text for side in ("dev", "test") for q in splits[side]]
    assert not near_duplicates([query.text for query in queries], asked)


def test_no_query_names_its_answer(asked_in_training):
    assert not any("CWE-" in query.text for query in asked_in_training)


def test_docstrings_with_the_same_text_are_one_document(monkeypatch):
    found = {"first": "the same", "second": "the same", "third": "another"}
    monkeypatch.setattr(training_data, "_documented", lambda path: found)
    drawn = training_data.read_docstrings(3, seed=0)
    assert sorted(text for _, text in drawn) == ["another", "the same"]


def test_a_group_is_one_positive_and_true_negatives(small_training, tmp_path):
    trainer = Trainer(SMALL, tmp_path)
    data, teacher = trainer.data, trainer.encoders.teacher()
    candidates = trainer.candidates(teacher)
    kinds = set()
    for number, query in enumerate(data.queries):
        columns, scores = trainer.group(number, candidates[number], random.Random(number))
        assert scores == pytest.approx(teacher.scores([number])[0][columns].tolist(), abs=1e-4)
        names = [data.ids[column] for column in columns]
        assert len(set(names)) == SMALL.group
        assert names[0] in query.positives
        for name in names[1:]:
            assert not data.owners[name] & (query.positives | query.related)
            kinds.add((query.field == "docstring", name.split("-")[0]))
    catalogue = {(False, kind) for kind in ("CWE", "excerpt", "passage", "mixture")}
    assert kinds == catalogue | {(True, "docstring")}


def test_mined_are_the_best_of_their_kind(small_training, tmp_path):
    trainer = Trainer(SMALL, tmp_path)
    data, teacher = trainer.data, trainer.encoders.teacher()
    found = trainer.candidates(teacher)[0]
    asked = data.queries[0]
    scores = teacher.scores([0])[0]
    allowed = [
        column
        for column in np.argsort(-scores).tolist()
        if data.kind[column] == "passage"
        and not data.owners[data.ids[column]] & (asked.positives | asked.related)
    ]
    assert sorted(found.mined["passage"].columns) == sorted(allowed[: SMALL.mined_ranks])


def test_the_teacher_is_the_mean_of_its_encoders(small_training, tmp_path, monkeypatch):
    trainer = Trainer(replace(SMALL, average_from=0, average_to=0), tmp_path)
    teacher = trainer.encoders.teacher()
    cosines = []
    for number in range(SMALL.teachers):
        vectors = torch.load(tmp_path / f"vectors-{number}.pt", weights_only=False)
        cosines.append(vectors["queries"][:3] @ vectors["documents"].T)
    assert not np.allclose(cosines[0], cosines[1])
    np.testing.assert_allclose(
        teacher.queries[:3] @ teacher.documents.T, np.mean(cosines, 0), atol=1e-6
    )
    documents = trainer.data.documents
    words = dict(
        search_bm25(documents, {"q": trainer.data.queries[0].text}, len(documents)).top(
            "q", len(documents)
        )
    )
    lexical = np.array([words.get(document, 0) for document in trainer.data.ids])
    expected = np.mean([one[0] for one in cosines], 0) / 0.05 + SMALL.bm25_weight * lexical
    np.testing.assert_allclose(teacher.scores([0])[0], expected, rtol=1e-4, atol=1e-4)
    # the reranker begins as the first of them
    states = [torch.load(tmp_path / f"encoder-{i}.pt") for i in (0, 1)]
    begun = {}
    monkeypatch.setattr(trainer, "train", lambda model, found: begun.update(model.state_dict()))
    trainer.run()
    for name, value in states[0].items():
        torch.testing.assert_close(begun[name], value, atol=0, rtol=0, msg=name)
    assert any(not torch.equal(value, begun[name]) for name, value in states[1].items())


def test_the_tuned_embedder_is_a_model_of_its_own(small_training, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(teacher, "half_is_quick", lambda device: False)
    recipe = replace(SMALL, tune_rate=0.01)
    training.main(["--output", str(tmp_path), "--embedder-only", *flags(recipe)])
    folder = tmp_path / "embedder"
    assert str(folder) in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {
        "recipe.json",
        "encoder-0.pt",
        "embedder",
    }
    trainer = Trainer(recipe, tmp_path)
    texts = ["SQL in the name field", "a buffer on the stack " * 30]
    expected = trainer.encoders.bi_encoder(trainer.encoders.tuned()).embed(texts)
    length = recipe.max_length
    assert json.loads((folder / "1_Pooling" / "config.json").read_text())[
        "pooling_mode_mean_tokens"
    ]
    assert load_embedder(folder, "mean", None, length, "cpu").tokenizer.model_max_length == length
    found = embed_documents(load_embedder(folder, "mean", None, length, "cpu"), texts)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    plain = embed_documents(load_embedder(minilm_path(), "mean", None, length, "cpu"), texts)
    assert np.abs(plain - found).max() > 1e-3


def test_a_step_has_the_stated_loss(small_training, tmp_path):
    """The mean over queries of the divergence and, after `distil_only`, of the cross-entropy."""
    nine = {"queries_per_step": 9, "reports_per_step": 3, "sentences_per_step": 3}  # in parts
    shares = {"distil_only": 0.5, "label_weight": 0.25, "long_share": 0.0}
    trainer = Trainer(replace(SMALL, **nine, **shares), tmp_path)
    trainer.pairs_at_once = 4 * SMALL.group
    model = trainer.encoders.tuned()
    candidates = trainer.candidates(trainer.encoders.teacher())
    model.eval()
    scorer, found = AdaptedScorer(model), []

    class Spy:
        def step(self, losses):
            found.append(sum(loss.item() for loss in losses))

    data = trainer.data
    for step, weight in ((1, 0.0), (2, 0.25)):
        trainer._train_step(step, random.Random(step), scorer, candidates, Spy())
        rng, expected = random.Random(step), []
        batch = trainer.draw(rng)
        for query, (columns, aim) in [
            (query, trainer.group(query, candidates[query], rng)) for query in batch
        ]:
            text = data.queries[query].text
            pairs = [(text, data.documents[data.ids[column]]) for column in columns]
            with scorer.step() as score:
                logits = trainer._score(score, pairs, SMALL.max_length).detach().numpy()
            divergence = rel_entr(softmax(aim), softmax(logits)).sum()
            expected.append((1 - weight) * divergence - weight * log_softmax(logits)[0])
        assert len(expected) == 9
        assert found[-1] == pytest.approx(np.mean(expected), rel=1e-3)


def test_logits_and_gradients_are_those_of_the_model(small_training, tmp_path, monkeypatch):
    """Training adds adapters to their weights, and of the last layer computes the first token."""
    monkeypatch.setattr(training_folder, "has_bfloat16", lambda: False)
    trainer = Trainer(SMALL, tmp_path)
    model = trainer.encoders.fresh()
    weights = {name: value for name, value in model.named_parameters() if value.requires_grad}
    for name, value in weights.items():
        if "lora_B" in name:  # zero at first, which would hide the adapter
            torch.nn.init.normal_(value, std=0.1)
    pairs = [("a short query", "a document"), ("another", "a longer text, with more words in it")]
    inputs = trainer.tokenizer(*map(list, zip(*pairs, strict=True)), padding=True)
    inputs = {name: torch.tensor(values) for name, values in inputs.items()}
    model.eval()
    expected = model(**inputs).logits.view(-1)
    (expected[0] - expected[1]).backward()
    aims = {name: value.grad for name, value in weights.items()}
    model.zero_grad()
    with AdaptedScorer(model).step() as score:
        found = trainer._score(score, pairs, 32)
        found[0].backward(retain_graph=True)  # losses come one by one
        (-found[1]).backward()
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    least = 1e-4 * max(aim.abs().max().item() for aim in aims.values() if aim is not None)
    for name, aim in aims.items():
        gradient = weights[name].grad
        if aim is None:  # of keys' biases, which no score depends on
            assert gradient is None or gradient.abs().max() < least, name
        else:
            torch.testing.assert_close(gradient, aim, atol=least, rtol=1e-3, msg=name)


def test_an_interrupted_training_gives_the_same_model(small_training, tmp_path, monkeypatch):
    whole = Trainer(SMALL, tmp_path / "whole")
    whole.run()
    assert {"adapter", "bundle", "merged", "log.jsonl", "snapshots"} <= {
        path.name for path in (tmp_path / "whole").iterdir()
    }

    names = ("adapter", "snapshots/2", "snapshots/4")
    adapter, *snapshots = (load_file(tmp_path / "whole" / name / ADAPTER) for name in names)
    assert any(not torch.equal(*(weights[name] for weights in snapshots)) for name in adapter)
    for name, value in adapter.items():
        mean = sum(weights[name] for weights in snapshots) / 2
        torch.testing.assert_close(value, mean, msg=name)

    folder, output = tmp_path / "whole", tmp_path / "log"
    monkeypatch.chdir(tmp_path)
    training_curve.main(f"{folder} --shares 0.5 1 --queries 2 --output {output}".split())
    curve = json.loads(output.read_text(encoding="utf-8"))
    assert [row["step"] for row in curve["steps"]] == curve["result"]["averaged"] == [2, 4]
    assert curve["losses"] == whole.log
    assert [row["reports"] for row in curve["reports"]] == [15, 30]
    assert not (folder / "shares" / "1").exists()  # that one is the training itself
    with monkeypatch.context() as patch:
        patch.setattr(tuning, "tune", None)  # nothing is tuned twice
        assert training_curve.record(folder, [1, 0.5], 2) == curve

    broken = Trainer(SMALL, tmp_path / "broken")
    step = broken._train_step

    def failing(number, *rest, **parts):
        if number == 3:
            raise KeyboardInterrupt
        return step(number, *rest, **parts)

    def unsaved(*rest):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(broken, "_train_step", failing)
        with pytest.raises(KeyboardInterrupt):
            broken.run()
    broken = Trainer(SMALL, tmp_path / "broken")
    with monkeypatch.context() as patch:  # between the last snapshot and the state of its step
        patch.setattr(broken, "_save", unsaved)
        with pytest.raises(KeyboardInterrupt):
            broken.run()
    shutil.rmtree(tmp_path / "broken" / "snapshots" / "4")  # half of it was written
    again = Trainer(SMALL, tmp_path / "broken")
    again.run()
    assert [row["step"] for row in again.log] == [1, 2, 3, 4]
    assert again.log == whole.log
    for name, value in load_file(tmp_path / "broken" / "adapter" / ADAPTER).items():
        torch.testing.assert_close(value, adapter[name], atol=0, rtol=0, msg=name)


def test_a_full_disk_is_said_in_words_and_the_last_step_is_kept(
    small_training, tmp_path, monkeypatch
):
    recipe = replace(SMALL, save_every=3, average_from=0, average_to=0)
    trainer = Trainer(recipe, tmp_path)
    model = trainer.encoders.fresh()
    monkeypatch.setattr(trainer, "_train_step", lambda *given: (0.0, 0.0))

    def full(folder):
        raise SafetensorError("I/O error: No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(model, "save_pretrained", full)
        with pytest.raises(OSError, match=r"A snapshot could not be saved .* same arguments"):
            trainer.train(model, [])
    trainer.train(model, [])
    assert torch.load(tmp_path / "state.pt", weights_only=False)["step"] == recipe.steps == 4


@pytest.mark.parametrize("quick", [True, False])
def test_a_training_computes_in_what_is_quick(small_training, tmp_path, monkeypatch, quick):
    """A processor without instructions for bfloat16 imitates it, many times slower."""
    monkeypatch.setattr(training_folder, "has_bfloat16", lambda: quick)
    trainer, precisions = Trainer(SMALL, tmp_path), set()
    model = trainer.encoders.fresh()
    for name, module in model.named_modules():
        if name.endswith("query.base_layer"):
            module.register_forward_hook(lambda m, i, out: precisions.add(out.dtype))
    scorer = AdaptedScorer(model).plain
    for name, module in scorer.named_modules():
        if name.endswith("query"):
            module.register_forward_hook(lambda m, i, out: precisions.add(out.dtype))
    for work in (
        lambda: trainer.encoders.bi_encoder(model).embed(["a text"]),
        lambda: trainer._score(scorer, [("a query", "a document")], SMALL.max_length),
    ):
        precisions.clear()
        work()
        assert precisions == {torch.bfloat16 if quick else torch.float32}


def test_a_group_too_small_for_its_negatives_is_refused():
    with pytest.raises(ValueError, match=r"are 14 together, but a group of 12 .* room for 8"):
        Recipe(group=12)


def test_too_few_mined_ranks_are_refused():
    with pytest.raises(ValueError, match=r"mined_ranks is 10, but .* group of 24 has 20 mined"):
        Recipe(mined_ranks=10)


def test_more_random_negatives_than_are_kept_are_refused():
    with pytest.raises(ValueError, match=r"random_negatives is 13, but 12 are kept"):
        Recipe(group=40, random_negatives=13)


def test_a_recipe_without_the_texts_it_asks_for_is_refused():
    with pytest.raises(ValueError, match=r"mined_excerpts is 5, but excerpts is 0: .* to 0 too"):
        Recipe(excerpts=0)
    Recipe(excerpts=0, mined_excerpts=0)
    with pytest.raises(ValueError, match=r"asks 14 docstrings .* but docstrings is 0: give 64"):
        Recipe(docstrings=0)
    with pytest.raises(ValueError, match=r"asks -6 docstrings"):
        Recipe(queries_per_step=20)
    Recipe(docstrings=0, queries_per_step=26)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"save_every": 0}, "save_every is 0: give a number above 0"),
        ({"teachers": 0}, "teachers is 0"),
        ({"rate": 0.0}, "rate is 0.0"),
        ({"mined_excerpts": -3}, "mined_excerpts is -3"),
        ({"report_share": 1.5}, "report_share is 1.5: give a share"),
        ({"label_weight": 3.0}, "label_weight is 3.0: give a share"),
        ({"tune_batch": 1}, "tune_batch is 1"),
    ],
)
def test_numbers_out_of_range_are_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        Recipe(**wrong)


def test_too_few_texts_are_named(small_training, tmp_path):
    with pytest.raises(ValueError, match=r"asks 2 reports .* a report_share of 0\.01 leaves 0"):
        Trainer(replace(SMALL, report_share=0.01), tmp_path / "reports")
    trainer = Trainer(replace(SMALL, mixtures=1, mined_mixtures=2), tmp_path / "mixtures")
    teacher = trainer.encoders.teacher()
    with pytest.raises(ValueError, match="A group has 2 texts of kind 'mixture', but only"):
        trainer.candidates(teacher)


def test_weights_that_overflow_stop_the_training(small_training, tmp_path):
    trainer = Trainer(replace(SMALL, warmup=0), tmp_path)
    model = trainer.encoders.fresh()
    candidates = trainer.candidates(trainer.encoders.teacher())
    torch.nn.init.constant_(model.get_parameter(CLASSIFIER), torch.nan)
    with pytest.raises(FloatingPointError, match="The loss is nan at step 1"):
        trainer.train(model, candidates)
    assert not (tmp_path / "state.pt").exists()


def test_the_command_line_says_what_is_wrong(small_training, tmp_path, monkeypatch):
    small = flags(SMALL)
    with pytest.raises(SystemExit, match=r"error: rate is 0\.0"):
        training.main(["--output", str(tmp_path / "new"), *small, "--rate", "0"])
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "letter.txt").write_text("mine")
    with pytest.raises(SystemExit, match="is not empty and holds no training"):
        training.main(["--output", str(tmp_path / "foreign"), *small])
    monkeypatch.setenv("RERANK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(mpnet, "PACKAGES", ("no-such-package",))
    larger = [*small, "--encoder", "mpnet", "--embedder-only"]
    with pytest.raises(SystemExit, match="error: The larger encoder needs the package"):
        training.main(["--output", str(tmp_path / "larger"), *larger])

    def interrupted(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "run", interrupted)
    with pytest.raises(SystemExit, match="Run the same command again"):
        training.main(["--output", str(tmp_path / "new"), *small])


def test_a_curve_needs_a_whole_training(tmp_path):
    (tmp_path / "recipe.json").write_text(json.dumps(asdict(SMALL)), encoding="utf-8")
    with pytest.raises(FileNotFoundError, match="is not finished, or saved no snapshot"):
        training_curve.record(tmp_path, [1.0])
    for name in ("snapshots", "adapter"):
        (tmp_path / name).mkdir()
    for share in (0.0, 1.5):
        with pytest.raises(ValueError, match=f"shares holds {share:g}: give shares above 0"):
            training_curve.record(tmp_path, [share])


def test_an_average_of_no_snapshot_is_refused():
    with pytest.raises(ValueError, match=r"No snapshot is saved from step 380 to 570: .* of 500"):
        Recipe(steps=500, average_from=380, average_to=570)
    with pytest.raises(ValueError, match="No snapshot is saved from step 10 to 20"):
        Recipe(average_from=10, average_to=20)
    with pytest.raises(ValueError, match="average_from is 570, but average_to is 0"):
        Recipe(average_from=570)
    assert Recipe(average_from=380, average_to=800).averaged() == [380, 570, 760]
    assert Recipe().averaged() == []


def test_a_folder_without_a_training_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No training in .*: `make reranker` makes one"):
        Recipe.of(tmp_path)


def test_a_training_of_another_version_is_named(tmp_path):
    (tmp_path / "recipe.json").write_text('{"seed": 0, "steps": 4}', encoding="utf-8")
    with pytest.raises(ValueError, match=r"another version .* no alpha\. Train anew"):
        Recipe.of(tmp_path)


@pytest.fixture
def small_mpnet(tmp_path, monkeypatch):
    """A random MPNet of two layers in place of the real one."""
    folder = tmp_path / "mpnet"
    tokenizer = AutoTokenizer.from_pretrained(minilm_path())
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 64, "vocab_size": len(tokenizer)}
    MPNetModel(MPNetConfig(**sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    monkeypatch.setattr(tuning, "mpnet_path", lambda: folder)
    return folder


def test_a_larger_encoder_teaches_a_reranker_trained_before(small_training, small_mpnet, tmp_path):
    recipe = replace(SMALL, average_from=0, average_to=0)
    Trainer(recipe, tmp_path / "first").run()
    start = tmp_path / "first" / "adapter"
    further = replace(recipe, encoder="mpnet", piece_length=24, seed=1)
    trainer = Trainer(further, tmp_path / "second", start)
    begun = get_peft_model_state_dict(trainer.beginning())
    before = load_file(start / ADAPTER)
    assert begun.keys() == before.keys()
    for name, value in before.items():
        torch.testing.assert_close(begun[name], value, atol=0, rtol=0, msg=name)
    trainer.run()
    vectors = torch.load(tmp_path / "second" / "vectors-0.pt", weights_only=False)
    assert vectors["documents"].shape == (len(trainer.data.documents), 32)
    after = load_file(tmp_path / "second" / "adapter" / ADAPTER)
    assert after.keys() == before.keys()
    assert all(not torch.equal(after[name], value) for name, value in before.items())
    # other weights to begin with are another training
    with pytest.raises(ValueError, match=r"other arguments \(start "):
        Trainer(further, tmp_path / "second", tmp_path / "second" / "adapter")


def test_a_reranker_cannot_begin_as_an_encoder_of_another_kind(small_training, tmp_path):
    with pytest.raises(ValueError, match="give start, the adapter folder"):
        Trainer(replace(SMALL, encoder="mpnet"), tmp_path / "by_hand").run()
    command = ["--output", str(tmp_path / "new"), *flags(SMALL), "--encoder", "mpnet"]
    with pytest.raises(SystemExit, match="give start, the adapter folder"):
        training.main(command)
    assert not (tmp_path / "new").exists()  # so the same command with a start is not refused


def test_a_start_of_another_rank_is_refused(small_training, tmp_path):
    model = Trainer(SMALL, tmp_path / "one").encoders.fresh()
    model.save_pretrained(tmp_path / "adapter")
    for name, number in (("rank", SMALL.rank + 2), ("alpha", SMALL.alpha * 2)):
        with pytest.raises(
            ValueError, match=f"has {name} {getattr(SMALL, name)}, the recipe {number}"
        ):
            Trainer(replace(SMALL, **{name: number}), tmp_path / "two", tmp_path / "adapter")
    with pytest.raises(ValueError, match=r"start is .*: give the adapter folder"):
        Trainer(SMALL, tmp_path / "two", tmp_path)
    assert not (tmp_path / "two").exists()


def test_a_start_without_a_head_is_refused(small_training, tmp_path):
    Trainer(SMALL, tmp_path / "one").encoders.fresh().save_pretrained(tmp_path / "adapter")
    weights = load_file(tmp_path / "adapter" / ADAPTER)
    encoder = {name: tensor for name, tensor in weights.items() if "lora" in name}
    save_file(encoder, tmp_path / "adapter" / ADAPTER)
    with pytest.raises(ValueError, match=r"does not fit this reranker \(.*pooler"):
        Trainer(SMALL, tmp_path / "two", tmp_path / "adapter").beginning()


def test_a_start_is_not_forgotten_when_a_training_resumes(small_training, tmp_path):
    Trainer(SMALL, tmp_path / "one").encoders.fresh().save_pretrained(tmp_path / "adapter")
    Trainer(SMALL, tmp_path / "two", tmp_path / "adapter")
    with pytest.raises(ValueError, match=r"other arguments \(start "):
        Trainer(SMALL, tmp_path / "two")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"max_length": 600, "long_length": 600}, "reads from 8 to 512 tokens"),
        ({"queries_per_step": 100, "docstrings": 90, "mined_ranks": 30}, "docstrings, but there"),
        ({"tune_batch": 1100}, "half of tune_batch"),
        ({"sentences_per_step": 4000, "queries_per_step": 5000}, "sentences, but there are"),
    ],
)
def test_what_no_step_can_have_is_refused_at_once(small_training, tmp_path, changed, said):
    with pytest.raises(ValueError, match=said):
        Trainer(replace(SMALL, **changed), tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("rate", [float("nan"), float("inf"), -1.0])
def test_a_rate_is_a_number(rate):
    with pytest.raises(ValueError, match=r"rate is .*: give a number above 0"):
        Recipe(rate=rate)


def test_pieces_take_the_place_of_long_documents(small_training):
    whole, cut = (training_data.TrainingSet(30, 2, 20) for _ in range(2))
    tokenizer = AutoTokenizer.from_pretrained(minilm_path())
    cut.cut(40, tokenizer)
    pieces = cut_into_pieces(whole.documents.values(), 40, tokenizer)
    for document, text in whole.documents.items():
        ids = [document, *(f"{document}#{i}" for i in range(1, len(pieces[text])))]
        assert [cut.documents[piece] for piece in ids] == pieces[text]
        assert {cut.owners[piece] for piece in ids} == {whole.owners[document]}
    assert len(cut.ids) == len(cut.kind) == sum(len(pieces[t]) for t in whole.documents.values())
    assert set(cut.kind) == set(whole.kind)
    for before, after in zip(whole.queries, cut.queries, strict=True):
        assert {piece.split("#")[0] for piece in after.positives} == before.positives
        assert len(after.positives) == sum(
            len(pieces[whole.documents[d]]) for d in before.positives
        )


def test_no_piece_of_a_right_document_counts_against_a_query(small_training, monkeypatch):
    """All vectors alike: the loss is the logarithm of the number of texts that may be wrong."""
    data = training_data.TrainingSet(30, 2, 20)
    data.cut(24, AutoTokenizer.from_pretrained(minilm_path()))
    encoder = teacher.BiEncoder(None, None, 32)
    monkeypatch.setattr(encoder, "in_parts", lambda texts: torch.ones(len(texts), 1))
    answer = data.queries[data.reports[0]].positives
    assert len(answer) > 1
    data.reports = data.sentences = data.reports[:1]

    class Drawn:
        """All pieces of the answer, and three others."""

        def sample(self, found, count):
            others = [d for d in found if d not in answer] if found and found[0] in data.ids else []
            return [*sorted(answer), *others[:3]] if others else list(found)

        def choice(self, found):
            return found[0]

    loss = encoder.loss(data, 2, Drawn())
    assert loss.item() == pytest.approx(np.log(4), abs=1e-4)


def test_unknown_encoders_and_pieces_without_room_are_refused():
    with pytest.raises(ValueError, match="encoder is 'bert': choose minilm or mpnet"):
        replace(SMALL, encoder="bert")
    with pytest.raises(ValueError, match="piece_length is 8: give 16 or more, or 0"):
        replace(SMALL, piece_length=8)


@pytest.mark.parametrize(
    ("free", "half", "pairs"), [(80e9, True, 960), (6e9, True, 133), (6e9, False, 66)]
)
def test_a_small_gpu_takes_fewer_pairs_at_once(monkeypatch, free, half, pairs):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 80e9))
    monkeypatch.setattr("rerank_utils.training.half_is_quick", lambda device: half)
    assert pairs_at_once(torch.device("cuda")) == pairs
    assert pairs_at_once(torch.device("cpu")) == 96
