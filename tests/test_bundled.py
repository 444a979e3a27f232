"""The models that come with packages: checked, merged, repaired."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from rerank_utils import bundled
from rerank_utils.reranking import load_reranker, score_pairs
from rerank_utils.training_curve import RECORD
from rerank_utils.training_recipe import Recipe

MEGABYTES = 1_000_000


@pytest.fixture
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("RERANK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def own_bundle(monkeypatch, tmp_path):
    folder = shutil.copytree(bundled.adapter_path(), tmp_path / "bundle")
    monkeypatch.setattr(bundled, "adapter_path", lambda: folder)
    return folder


def test_the_bundle_is_small_and_complete():
    files = {path.name: path.stat().st_size for path in bundled.adapter_path().iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "manifest.json"} <= set(files)
    assert "README.md" in files  # the model card
    assert sum(files.values()) <= 6 * MEGABYTES


def test_card_log_and_makefile_tell_the_same_story():
    """What `make reranker` says it expects is the card's figure, by the recipe of the log."""
    card = (bundled.adapter_path() / "README.md").read_text(encoding="utf-8")
    makefile = (Path(__file__).parent.parent / "Makefile").read_text(encoding="utf-8")
    expected = re.search(r"nDCG@10 (0\.\d+) here; expect that within (0\.\d+)", makefile)
    assert f"| dense, top 50 reranked | {expected[1]} |" in card
    assert f"Expect nDCG@10 within {expected[2]} of" in card
    log = json.loads((bundled.adapter_path() / RECORD).read_text(encoding="utf-8"))
    command = re.search(r"rerank_utils.training --output FOLDER (.*?)\n```", card, re.DOTALL)[1]
    flags = re.findall(r"--(\S+) (\d+)", command)
    quarter = Recipe(**{name.replace("-", "_"): int(value) for name, value in flags})
    for recipe in (quarter, Recipe()):
        pairs = recipe.steps * recipe.queries_per_step * recipe.group
        assert f"{pairs:,} pairs" in card
    assert log["result"]["averaged"] == Recipe().averaged()
    assert log["losses"][-1]["step"] == log["steps"][-1]["step"] == Recipe().steps
    compared = (bundled.adapter_path() / "compared.json").read_text(encoding="utf-8")
    curves = [[row["nDCG@10"] for row in run["steps"]] for run in json.loads(compared)["runs"]]
    assert [row["nDCG@10"] for row in log["steps"]] in curves


def test_the_packaged_minilm_is_the_one_the_course_was_made_with():
    weights = bundled.minilm_path() / bundled.WEIGHTS
    assert bundled.file_sha256(weights) == bundled.MINILM_SHA256


def test_other_minilm_weights_are_refused(monkeypatch):
    bundled.minilm_path.cache_clear()
    monkeypatch.setattr(bundled, "MINILM_SHA256", "0" * 64)
    with pytest.raises(ValueError, match=r"model.safetensors has sha256 53aa51172d14…, expected"):
        bundled.minilm_path()
    monkeypatch.undo()
    bundled.minilm_path.cache_clear()


def test_a_damaged_adapter_is_refused(own_cache, own_bundle):
    weights = own_bundle / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ValueError, match=r"adapter_model.safetensors has sha256"):
        bundled.reranker_path()
    assert not own_cache.exists()


def test_a_damaged_merge_is_made_again(own_cache):
    folder = bundled.reranker_path()
    assert folder.parent == own_cache
    weights = folder / bundled.WEIGHTS
    good = weights.read_bytes()
    stamp = weights.stat().st_mtime_ns
    assert bundled.reranker_path() == folder
    assert weights.stat().st_mtime_ns == stamp  # whole: not touched

    weights.write_bytes(good[:1000])
    assert bundled.reranker_path() == folder
    assert weights.read_bytes() == good

    (folder / "tokenizer.json").unlink()
    bundled.reranker_path()
    assert (folder / "tokenizer.json").exists()

    for damaged in ("[not json", "{}", "[]"):
        (folder / "manifest.json").write_text(damaged)
        bundled.reranker_path()
        assert bundled.WEIGHTS in json.loads((folder / "manifest.json").read_text())
    assert [path.name for path in own_cache.iterdir()] == [folder.name]  # nothing left over


def test_two_processes_can_merge_at_once(own_cache, monkeypatch):
    """Another one is quicker: what it made is in use already, and stays."""
    merge, stamps = bundled.merge, []

    def slow(adapter, folder):
        with monkeypatch.context() as patch:
            patch.setattr(bundled, "merge", merge)
            other = bundled.reranker_path()
        stamps.append((other / bundled.WEIGHTS).stat().st_ino)
        merge(adapter, folder)

    monkeypatch.setattr(bundled, "merge", slow)
    folder = bundled.reranker_path()
    assert (folder / bundled.WEIGHTS).stat().st_ino == stamps[0]


def test_the_merged_model_is_base_plus_adapter(own_cache):
    """Merging by hand: W + (alpha / r) B A for every adapted matrix, and the head as trained."""
    from safetensors.numpy import load_file

    adapter = load_file(bundled.adapter_path() / "adapter_model.safetensors")
    config = json.loads((bundled.adapter_path() / "adapter_config.json").read_text())
    base = load_file(bundled.minilm_path() / bundled.WEIGHTS)
    merged = load_file(bundled.reranker_path() / bundled.WEIGHTS)
    scale = config["lora_alpha"] / config["r"]
    adapted = [key for key in adapter if ".lora_A." in key]
    assert len(adapted) == 36  # six layers of query, key, value and three dense
    for key in adapted:
        name = key.split(".bert.")[1].split(".lora_A")[0]
        b, a = (adapter[key.replace("lora_A", part)] for part in ("lora_B", "lora_A"))
        change = scale * b.astype(np.float32) @ a.astype(np.float32)
        expected = base[f"{name}.weight"] + change
        np.testing.assert_allclose(merged[f"bert.{name}.weight"], expected, atol=1e-5)
        assert np.abs(change).max() > 1e-3
    for name in ("classifier.weight", "classifier.bias", "bert.pooler.dense.weight"):
        (trained,) = (value for key, value in adapter.items() if key.endswith(f".{name}"))
        np.testing.assert_array_equal(merged[name], trained.astype(np.float32))


def test_the_reranker_knows_a_weakness_from_another():
    reranker = load_reranker(bundled.reranker_path(), bundled.MAX_LENGTH, "cpu")
    report = "web forum runs script that an attacker put into a comment"
    right = "Cross-site Scripting. The product does not neutralize user input in web pages."
    wrong = "Divide By Zero. The product divides a value by zero."
    good, bad = score_pairs(reranker, [(report, right), (report, wrong)])
    assert good > bad
    theirs = reranker.compute_score([[report, right], [report, wrong]])
    np.testing.assert_allclose([good, bad], theirs, atol=1e-4)
