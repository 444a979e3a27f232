"""What the tests share: tiny models made on disk, so that nothing is downloaded."""

import json
import os
from pathlib import Path

import pytest
from cells import taught_source

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test that wants the hub says so itself
os.environ.pop("RERANK_PROFILE", None)  # so that a user's own setting changes no test


@pytest.fixture(scope="session")
def tiny_reranker_folder(tmp_path_factory) -> Path:
    """A random one-logit BERT with MiniLM's tokenizer: quick, and of the right shape."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    from rerank_utils.bundled import minilm_path

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=30522,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        num_labels=1,
        initializer_range=0.2,
    )
    folder = tmp_path_factory.mktemp("tiny-reranker")
    BertForSequenceClassification(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(minilm_path()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_xlmr_folder(tmp_path_factory) -> Path:
    """The layout of the BGE rerankers: XLM-RoBERTa with a Unigram tokenizer, random weights."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import (
        PreTrainedTokenizerFast,
        XLMRobertaConfig,
        XLMRobertaForSequenceClassification,
    )

    from rerank_utils.cwe import load_cwe

    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    texts = list(load_cwe().documents.values())[:200]
    trainer = trainers.UnigramTrainer(
        vocab_size=1_000, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    folder = tmp_path_factory.mktemp("tiny-xlmr")
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        cls_token="<s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token="<mask>",
        model_input_names=["input_ids", "attention_mask"],
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = XLMRobertaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=514,
        type_vocab_size=1,
        num_labels=1,
        initializer_range=0.2,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
    )
    XLMRobertaForSequenceClassification(config).save_pretrained(folder)
    return folder


@pytest.fixture
def beir_folder(tmp_path) -> Path:
    """A BEIR folder of four documents and two queries."""
    folder = tmp_path / "fruit"
    (folder / "qrels").mkdir(parents=True)
    documents = [
        {"_id": "d1", "title": "Apple", "text": "A fruit that grows on trees."},
        {"_id": "d2", "title": "Carrot", "text": "A root vegetable, often orange."},
        {"_id": "d3", "title": "", "text": "Bread is baked from flour and water."},
        {"_id": "d4", "text": "Tea is made from leaves."},
    ]
    queries = [
        {"_id": "q1", "text": "orange vegetable"},
        {"_id": "q2", "text": "what grows on trees"},
        {"_id": "q3", "text": "judged by nobody"},
    ]
    write_lines(folder / "corpus.jsonl", documents)
    write_lines(folder / "queries.jsonl", queries)
    (folder / "qrels" / "test.tsv").write_text(
        "query-id\tcorpus-id\tscore\nq1\td2\t1\nq2\td1\t1\nq2\td2\t0\n"
    )
    return folder


def write_lines(path: Path, records: list[dict]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.fixture(scope="session")
def taught():
    """taught("03_reranking", "score"): the source of the one cell that is tagged so."""
    return taught_source
