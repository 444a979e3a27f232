"""The comparing layer computes the cosine it was set to, and what is below it learns to compare."""

import numpy as np
import pytest
import torch
from torch.nn.functional import cosine_similarity, normalize
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rerank_utils.comparison import (
    Part,
    comparison_loss,
    divergence,
    pair_logits,
    plain_means,
    read_pairs,
    set_comparing_layer,
    set_side,
    weighed_means,
)
from rerank_utils.descent import Descent, length_parts
from rerank_utils.encoder import read_layers
from rerank_utils.tiny import build_tiny

GROUP, GROUPS = 4, 9
SIZES = {"num_hidden_layers": 3, "hidden_size": 64, "intermediate_size": 256}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return build_tiny("bert-reranker", tmp_path_factory.mktemp("tiny"), **SIZES)


@pytest.fixture
def model(folder):
    found = AutoModelForSequenceClassification.from_pretrained(folder, attn_implementation="eager")
    return found.eval()


@pytest.fixture(scope="module")
def pairs():
    words = ["buffer", "script", "pointer", "path", "token", "query", "login", "header"]
    draw = np.random.default_rng(0)
    texts = [" ".join(draw.choice(words, size)) for size in draw.integers(2, 16, GROUP * GROUPS)]
    return [(" ".join(draw.choice(words, 4)), text) for text in texts]


@pytest.fixture(scope="module")
def aim():
    drawn = np.random.default_rng(1).normal(size=(GROUPS, GROUP))
    return torch.from_numpy(drawn.astype(np.float32))


@pytest.fixture
def read(folder, model, pairs):
    """Parts of the pairs after two of the three layers."""
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def reading(parts=3):
        cut = length_parts(tokenizer, pairs, 32, "cpu", parts)
        return [read_pairs(model.bert, place, inputs, 2) for place, inputs in cut]

    return reading


@pytest.fixture
def side():
    torch.manual_seed(0)
    return torch.nn.Linear(SIZES["hidden_size"], 1)


def test_the_states_are_those_of_transformers(folder, model, pairs):
    inputs = AutoTokenizer.from_pretrained(folder)(
        *map(list, zip(*pairs, strict=True)), padding=True, return_tensors="pt"
    )
    real = inputs["attention_mask"].bool()
    with torch.no_grad():
        theirs = model.bert(**inputs, output_hidden_states=True).hidden_states
        for layers in (1, 3):
            ours, _ = read_layers(model.bert, layers, **inputs)
            torch.testing.assert_close(ours[real], theirs[layers][real], atol=1e-5, rtol=1e-5)


def test_query_and_document_are_told_by_what_the_tokenizer_says(folder, model):
    tokenizer, pair = AutoTokenizer.from_pretrained(folder), ("one", "two words")
    inputs = tokenizer([pair, ("one", "two")], padding=True, return_tensors="pt")
    part = read_pairs(model.bert, np.arange(2), inputs, 1)
    assert not (part.query & part.document).any()
    assert torch.equal(part.query | part.document, inputs["attention_mask"].bool())
    first = len(tokenizer("one")["input_ids"])  # [CLS] one [SEP]
    assert part.query.sum(1).tolist() == [first, first]
    assert part.document.sum(1)[0] > part.document.sum(1)[1]


def test_the_loss_does_not_depend_on_how_the_pairs_are_parted(read, side, aim):
    with torch.no_grad():
        set_side(side, read())
        (one, scores), (three, again) = (comparison_loss(read(n), side, aim) for n in (1, 3))
    torch.testing.assert_close(scores, again, atol=1e-4, rtol=1e-4)
    # the errors of the marks are means over the tokens of a part
    torch.testing.assert_close(one, three, atol=0, rtol=0.05)


def test_sharp_marks_make_the_weighed_means_the_plain_ones(read):
    """A coordinate that says the side alone is all that the marks need."""
    (part,) = read(1)
    part.hidden[..., 0] = torch.where(part.document, 20.0, -20.0)
    side = torch.nn.Linear(SIZES["hidden_size"], 1)
    with torch.no_grad():
        set_side(side, [part])
        marks = side(part.hidden).squeeze(-1)
        torch.testing.assert_close(
            marks[part.document].mean(), torch.tensor(1.0), atol=0.01, rtol=0
        )
        torch.testing.assert_close(marks[part.query].mean(), torch.tensor(-1.0), atol=0.01, rtol=0)
        side.weight *= 5
        side.bias *= 5
        for ours, plain in zip(weighed_means(part, side), plain_means(part), strict=True):
            torch.testing.assert_close(ours, plain, atol=0.3, rtol=0.05)


def test_the_encoder_learns_to_compare_in_one_pass(model, read, side, aim):
    with torch.no_grad():
        set_side(side, read())
    descent = Descent([(model.parameters(), 3e-3), (side.parameters(), 3e-3)], 60, warmup=1)
    found = []
    for _ in range(40):
        loss, scores = comparison_loss(read(), side, aim)
        found.append(divergence(scores, aim).item())
        descent.step(loss)
    assert found[-1] < 0.5 * found[0]


def test_the_logit_is_the_cosine_of_the_two_means(model, side):
    """Of tokens scattered about their text's vector, with a mark of their side."""
    kept = [weights.clone() for weights in model.bert.encoder.layer[:2].parameters()]
    rows, tokens, width = 200, 24, SIZES["hidden_size"]
    torch.manual_seed(0)
    query, away = torch.randn(2, rows, 1, width)
    share = torch.rand(rows, 1, 1)
    document = torch.arange(tokens) >= torch.randint(4, 12, (rows, 1))
    vectors = torch.where(document[..., None], share * query + (1 - share) * away, query)
    hidden = normalize(vectors, dim=-1) * 8 + torch.randn(rows, tokens, width)
    hidden[..., 0] = torch.where(document, 3.0, -3.0) + 0.3 * torch.randn(rows, tokens)
    part = Part(np.arange(rows), hidden, torch.zeros(rows, 1, 1, tokens), ~document, document)
    with torch.no_grad():
        set_side(side, [part])
        cosines = cosine_similarity(*weighed_means(part, side)).view(20, 10)
        set_comparing_layer(model, side, [part], cosines)  # by a teacher who says the cosine
        logits = pair_logits(model, [part]).view(20, 10)
    for before, after in zip(kept, model.bert.encoder.layer[:2].parameters(), strict=True):
        assert torch.equal(before, after)  # the encoder itself is left alone
    ours, theirs = ((x - x.mean(1, keepdim=True)).flatten() for x in (logits, cosines))
    assert torch.corrcoef(torch.stack([ours, theirs]))[0, 1] > 0.9
    assert (ours @ theirs) / (ours @ ours) == pytest.approx(1, abs=0.01)


def test_the_logits_are_those_of_the_whole_model(folder, model, read, side, pairs, aim):
    inputs = AutoTokenizer.from_pretrained(folder)(
        *map(list, zip(*pairs, strict=True)), padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        parts = read()
        set_side(side, parts)
        set_comparing_layer(model, side, parts, aim, seed=0)
        theirs = model(**inputs).logits.view(-1)
        torch.testing.assert_close(pair_logits(model, parts), theirs, atol=1e-4, rtol=1e-4)


def test_the_same_seed_sets_the_same_layer(folder, model, read, side, aim):
    other = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    parts = read()
    set_side(side, parts)
    for found in (model, other):
        torch.manual_seed(0 if found is model else 1)  # nothing else may matter
        set_comparing_layer(found, side, parts, aim, seed=5)
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one, two)
