"""Tiny: models with the true layouts of the BGE models and random weights, made on disk.

They load, tokenize and score through the same code as the real ones, in seconds and without a
download. What they rank is noise: use them to try code, never to judge quality.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .hub import quiet_libraries

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

_TEXTS = 200
"""Documents of the CWE collection that a tokenizer is trained on."""
_WORDS = 1_000
_M3_HEADS = ("colbert_linear", "sparse_linear")
_SIZES = {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 64}
_SIZES |= {"num_attention_heads": 2, "initializer_range": 0.2}


def build_tiny(kind: str, folder: str | Path, seed: int = 0, **config: Any) -> Path:
    """Make a tiny random model of one kind in a folder, with its tokenizer.

    Two layers of 32 numbers; weights are drawn wide, so that scores differ.

    Args:
        kind: one of `KINDS`: "bert-embedder" (bge-base-en-v1.5 and its sisters),
            "xlm-roberta-embedder", "bge-m3", "bert-reranker", "xlm-roberta-reranker"
            (bge-reranker-base, -large, -v2-m3) or "gemma-reranker" (bge-reranker-v2-gemma).
        folder: made if it is not there; a model in it is written over.
        seed: of the weights.
        config: fields of the model's configuration that shall differ, such as
            `max_position_embeddings=8194`.

    Returns:
        The folder.

    Raises:
        ValueError: there is no such kind.
    """
    if kind not in KINDS:
        raise ValueError(f"Unknown kind {kind!r}: choose one of {', '.join(KINDS)}.")
    import torch
    import transformers

    quiet_libraries()
    make_tokenizer, class_name, own = _KINDS[kind]
    tokenizer = make_tokenizer()
    model_class = getattr(transformers, class_name)
    fields = {"vocab_size": len(tokenizer), **_special_ids(tokenizer), **_SIZES, **own, **config}
    folder = Path(folder)
    for name in _M3_HEADS:  # of another kind that stood there
        (folder / f"{name}.pt").unlink(missing_ok=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model_class(model_class.config_class(**fields))
        model.save_pretrained(folder)  # as safetensors
        if kind == "bge-m3":
            _save_m3_heads(model.config, folder)
    tokenizer.save_pretrained(folder)
    return folder


def _special_ids(tokenizer: PreTrainedTokenizerBase) -> dict[str, int | None]:
    names = ("pad_token_id", "bos_token_id", "eos_token_id")
    return {name: getattr(tokenizer, name) for name in names}


def _save_m3_heads(config: PretrainedConfig, folder: Path) -> None:
    """The two linear layers of bge-m3 beside the encoder: for token vectors and token weights."""
    import torch

    for name, width in zip(_M3_HEADS, (config.hidden_size, 1), strict=True):
        layer = torch.nn.Linear(config.hidden_size, width)
        torch.save(layer.state_dict(), folder / f"{name}.pt")


def _bert_tokenizer() -> PreTrainedTokenizerBase:
    """WordPiece with the vocabulary of bert-base-uncased, as the English BGE models have it."""
    from transformers import AutoTokenizer

    from .bundled import minilm_path

    return AutoTokenizer.from_pretrained(minilm_path())


def _xlm_roberta_tokenizer() -> PreTrainedTokenizerBase:
    """SentencePiece (Unigram) with XLM-RoBERTa's special tokens and `<s> a </s></s> b </s>`."""
    import io

    from sentencepiece import SentencePieceTrainer, sentencepiece_model_pb2
    from transformers import XLMRobertaTokenizer

    stream = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(_texts()),
        model_writer=stream,
        vocab_size=_WORDS - 1,
        character_coverage=1.0,
        num_threads=1,  # the same pieces each time
        minloglevel=2,
        **{"bos_id": 0, "pad_id": 1, "eos_id": 2, "unk_id": 3},
    )
    trained = sentencepiece_model_pb2.ModelProto.FromString(stream.getvalue())
    vocabulary = [(piece.piece, piece.score) for piece in trained.pieces]
    return XLMRobertaTokenizer(
        vocab=[*vocabulary, ("<mask>", 0.0)],
        _spm_precompiled_charsmap=trained.normalizer_spec.precompiled_charsmap,
    )


def _gemma_tokenizer() -> PreTrainedTokenizerBase:
    """BPE over characters, bytes for the rare ones, with Gemma's special tokens and "Yes"."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import GemmaTokenizer

    raw = Tokenizer(models.BPE())
    raw.normalizer = normalizers.Replace(" ", "▁")
    raw.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    special += [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=len(special) + _WORDS, special_tokens=special, show_progress=False
    )
    raw.train_from_iterator([*_texts(), *["Yes", "No", "\n"] * 1_000], trainer)
    trained = json.loads(raw.to_str())["model"]
    return GemmaTokenizer(trained["vocab"], [tuple(merge) for merge in trained["merges"]])


def _texts() -> list[str]:
    from .cwe import load_cwe

    return list(load_cwe().documents.values())[:_TEXTS]


_BERT = {"max_position_embeddings": 512}
_XLM_ROBERTA = {"max_position_embeddings": 514, "type_vocab_size": 1}
_M3 = _XLM_ROBERTA | {"max_position_embeddings": 8_194}
_GEMMA = {"max_position_embeddings": 8_192, "num_key_value_heads": 1, "head_dim": 16}
_ONE = {"num_labels": 1}

_KINDS: dict[str, tuple[Callable[[], PreTrainedTokenizerBase], str, dict[str, Any]]] = {
    "bert-embedder": (_bert_tokenizer, "BertModel", _BERT),
    "xlm-roberta-embedder": (_xlm_roberta_tokenizer, "XLMRobertaModel", _XLM_ROBERTA),
    "bge-m3": (_xlm_roberta_tokenizer, "XLMRobertaModel", _M3),
    "bert-reranker": (_bert_tokenizer, "BertForSequenceClassification", _BERT | _ONE),
    "xlm-roberta-reranker": (
        _xlm_roberta_tokenizer,
        "XLMRobertaForSequenceClassification",
        _XLM_ROBERTA | _ONE,
    ),
    "gemma-reranker": (_gemma_tokenizer, "GemmaForCausalLM", _GEMMA),
}
KINDS = tuple(_KINDS)
