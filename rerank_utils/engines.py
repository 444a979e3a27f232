"""What runs a cross-encoder: torch, or OpenVINO and ONNX Runtime on a CPU, in a chosen precision.

The two engines get the same weights, written once as ONNX to the user's cache.
"""

from __future__ import annotations

import copy
import hashlib
import os
import tempfile
import threading
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np

from .batching import Arrays, Forward
from .bundled import cache_folder

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

DTYPES = {
    "torch": ("auto", "float32", "bfloat16", "float16"),
    "openvino": ("auto", "float32", "bfloat16", "int8"),
    "onnx": ("auto", "float32", "int8"),
}
"""The precisions of each backend. "auto" is float32 on a CPU, so that numbers do not depend on
the processor, and on a GPU what the reranker was loaded with."""
GROUP = 128
"""Values of an activation that share one scale in OpenVINO's int8."""
_EXPORT = 1
"""Counted up when the exported graph changes."""
_names: WeakKeyDictionary[Any, tuple[tuple, str]] = WeakKeyDictionary()
"""Model -> a look at its weights, and the name that they got then."""
_ready: WeakKeyDictionary[Any, dict[tuple[str, str, str], Forward]] = WeakKeyDictionary()


def fastest_on_cpu() -> dict[str, str]:
    """Backend and dtype that measured best, as arguments; they need the extra "fast"."""
    return {"backend": "openvino", "dtype": "int8"}


def has_bfloat16() -> bool:
    """Whether the processor has instructions for bfloat16 (AVX512_BF16 or AMX on x86)."""
    import torch

    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, bool)() for name in checks)


def _adds_int8() -> bool:
    """Whether the processor adds up products of int8 without overflow (VNNI on x86)."""
    import torch

    return getattr(torch.cpu, "_is_vnni_supported", bool)()


def open_engine(
    model: PreTrainedModel, device: str, backend: str = "torch", dtype: str = "auto"
) -> Forward:
    """A function that gives the logits of a batch.

    Args:
        model: a one-logit cross-encoder.
        device: "cpu", "cuda:0" ...
        backend: "torch", "openvino" or "onnx"; the last two need a CPU and the extra "fast".
        dtype: see `DTYPES`. int8 gives each output channel of the weights a scale of its own.
            The activations get theirs while running: in OpenVINO every `GROUP` values of a token,
            in ONNX Runtime a whole batch at once. That is coarser, and a score depends a little
            on the rest of its batch.

    Raises:
        ValueError: an unknown backend, a dtype that it or the processor does not have, another
            device than a CPU, a family whose layers are not known here, or float32 for weights
            that are in half precision already.
        ModuleNotFoundError: the extra is not installed.
    """
    _check(model, device, backend, dtype)
    model.to(device).eval()
    if backend == "torch" and dtype == "auto":
        return _torch_forward(model)
    dtype = "float32" if dtype == "auto" else dtype
    weights = _fingerprint(model)
    engines = _ready.setdefault(model, {})
    if (weights, backend, dtype) not in engines:
        if any(old[0] != weights for old in engines):
            engines.clear()  # the model was trained on since
        engines[weights, backend, dtype] = _OPEN[backend](model, dtype, weights)
    return engines[weights, backend, dtype]


def check_choice(backend: str, dtype: str) -> None:
    """Raise ValueError if there is no such backend, or it or this processor lacks the dtype."""
    if backend not in DTYPES:
        raise ValueError(f"Unknown backend {backend!r}: choose one of {', '.join(DTYPES)}.")
    if dtype not in DTYPES[backend]:
        raise ValueError(
            f"backend={backend!r} has no dtype {dtype!r}: choose one of "
            f"{', '.join(DTYPES[backend])}."
        )
    if backend == "openvino" and dtype == "bfloat16" and not has_bfloat16():
        raise ValueError(
            "This processor does not multiply bfloat16: use backend='openvino' with dtype='int8'."
        )


def _check(model: PreTrainedModel, device: str, backend: str, dtype: str) -> None:
    from .encoder import FirstTokenScorer

    check_choice(backend, dtype)
    if backend == "torch":
        return
    if not device.startswith("cpu"):
        raise ValueError(f"backend={backend!r} runs on a CPU: load the reranker with device='cpu'.")
    if not FirstTokenScorer.supports(model):
        raise ValueError(
            f"backend={backend!r} knows BERT and (XLM-)RoBERTa, not {type(model).__name__}: use "
            "backend='torch'."
        )


def _torch_forward(model: PreTrainedModel) -> Forward:
    import torch

    from .encoder import FirstTokenScorer

    scorer = FirstTokenScorer(model) if FirstTokenScorer.supports(model) else None

    def forward(batch: Arrays) -> torch.Tensor:
        if batch["attention_mask"].all():  # nothing to hide: attention is quicker without
            batch = {name: ids for name, ids in batch.items() if name != "attention_mask"}
        inputs = {name: torch.from_numpy(ids).to(model.device) for name, ids in batch.items()}
        if scorer is not None:
            return scorer(**inputs)
        return model(**inputs, return_dict=True).logits.view(-1)

    return forward


def _open_torch(model: PreTrainedModel, dtype: str, weights: str) -> Forward:
    import torch

    wanted = getattr(torch, dtype)
    if model.dtype == wanted:
        return _torch_forward(_detached(model))
    if wanted == torch.float32:
        raise ValueError(
            f"dtype is 'float32', but the weights were rounded to {model.dtype} before: load "
            "the reranker anew with load_reranker, and score with this dtype first."
        )
    return _torch_forward(copy.deepcopy(model).to(wanted))


def _detached(model: PreTrainedModel) -> PreTrainedModel:
    """The same weights in another object, so that remembering it does not keep the model."""
    return copy.deepcopy(model, {id(value): value for value in model.parameters()})


def _open_openvino(model: PreTrainedModel, dtype: str, weights: str) -> Forward:
    openvino = _import("openvino")
    path = _exported(model, weights)
    half = dtype == "bfloat16" or (dtype == "int8" and has_bfloat16())
    settings = {"INFERENCE_PRECISION_HINT": "bf16" if half else "f32"}
    if dtype == "int8":
        path = _derived(path, "int8-weights", _compress)
        settings["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = str(GROUP)
    compiled = openvino.Core().compile_model(path, "CPU", settings)
    request, lock = compiled.create_infer_request(), threading.Lock()

    def forward(batch: Arrays) -> np.ndarray:
        with lock:  # the request belongs to the model: two calls of score_pairs may share it
            return np.array(next(iter(request.infer(batch, share_inputs=True).values())))

    return forward


def _open_onnx(model: PreTrainedModel, dtype: str, weights: str) -> Forward:
    runtime = _import("onnxruntime")
    path = _exported(model, weights)
    if dtype == "int8":
        bits = 8 if _adds_int8() else 7
        kind = "int8" if bits == 8 else "int8-seven-bits"
        path = _derived(path, kind, partial(_quantize, bits=bits))
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda batch: session.run(None, batch)[0]


_OPEN = {"torch": _open_torch, "openvino": _open_openvino, "onnx": _open_onnx}


def _import(name: str) -> Any:
    from importlib import import_module

    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f'This backend needs {error.name}, of the extra "fast": pip install -c '
            'constraints.txt -e ".[fast]".'
        ) from error


def _fingerprint(model: PreTrainedModel) -> str:
    """A name for these weights in this architecture; worked out anew when a look finds a change."""
    stamp, (before, name) = _stamp(model), _names.get(model, (None, ""))
    if stamp != before:
        name = _digest(model)
        _names[model] = stamp, name
    return name


def _stamp(model: PreTrainedModel) -> tuple:
    """What any change of the weights changes, read in no time: of each tensor where it lies, how
    often torch has written into it, and a few of its numbers, for who writes past torch."""
    looks = []
    for name, tensor in model.state_dict().items():
        some = tensor.flatten()[:: max(1, tensor.numel() // 8)].tolist()
        looks.append((name, tensor.dtype, tensor.data_ptr(), tensor._version, some))
    return (model.config.to_json_string(), *looks)


def _digest(model: PreTrainedModel) -> str:
    """A sha256 of all weights, shortened; seconds for a large model."""
    import torch

    digest = hashlib.sha256(f"{_EXPORT} {model.config.to_json_string()}".encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def _exported(model: PreTrainedModel, weights: str) -> Path:
    """The model as ONNX in float32; written on first use."""
    _import("onnx")
    folder = cache_folder() / f"onnx-{weights}"
    if not (folder / "model.onnx").exists():
        _write_once(folder, lambda scratch: _export(model, scratch / "model.onnx"))
    return folder / "model.onnx"


def _derived(path: Path, kind: str, write: Callable[[Path, Path], None]) -> Path:
    """Another version of an exported model, in a folder beside its own; written on first use."""
    folder = path.parent.with_name(f"{path.parent.name}-{kind}")
    if not (folder / "model.onnx").exists():
        _write_once(folder, lambda scratch: write(path, scratch / "model.onnx"))
    return folder / "model.onnx"


def _write_once(folder: Path, write: Callable[[Path], None]) -> None:
    """Fill a fresh folder, then move it to its place in one step."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        fresh = Path(scratch) / "fresh"
        fresh.mkdir()
        write(fresh)
        try:
            os.replace(fresh, folder)
        except OSError:  # another process was quicker
            if not (folder / "model.onnx").exists():
                raise


def _export(model: PreTrainedModel, path: Path) -> None:
    import torch

    from .encoder import FirstTokenScorer

    scorer = FirstTokenScorer(copy.deepcopy(model).float()).eval()
    names = ["input_ids", "attention_mask"]
    if model.config.type_vocab_size > 1:
        names.append("token_type_ids")
    example = {name: torch.ones(2, 8, dtype=torch.int64) for name in names}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of the exporter's age, and of shapes it cannot prove
        torch.onnx.export(
            scorer,
            (example,),
            str(path),
            input_names=names,
            output_names=["logits"],
            dynamic_axes={name: {0: "rows", 1: "tokens"} for name in names},
            dynamo=False,
        )


def _quantize(path: Path, target: Path, bits: int) -> None:
    """Weights as int8, of which 8 bits are used, or 7 where two products may overflow 16 bits.

    ONNX Runtime multiplies uint8 by int8, and x86 without VNNI adds two such products in 16 bits.
    Sums that do not fit are cut in silence, and the scores are wrong.
    """
    import logging

    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    logging.getLogger().addFilter(quiet := lambda record: "pre-processing" not in record.msg)
    try:
        quantize_dynamic(
            onnx.load(path),  # with the weights that lie beside a file of more than 2 GB
            target,
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=bits == 7,
        )
    finally:
        logging.getLogger().removeFilter(quiet)


def _compress(path: Path, target: Path) -> None:
    """Weights as int8 with a scale for each output channel; the rest stays as it is.

    w = scale * q with q from -127 to 127. OpenVINO sees the pattern and multiplies in int8.
    """
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.load(path)
    graph = model.graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    nodes, done = [], set()
    for node in graph.node:
        name = node.input[1] if node.op_type in ("MatMul", "Gemm") else None
        if name not in stored or name in done or len(stored[name].dims) != 2:
            continue
        transposed = any(option.name == "transB" and option.i for option in node.attribute)
        axis = 0 if transposed else 1  # of the output channels
        values = numpy_helper.to_array(stored[name])
        scale = np.abs(values).max(1 - axis, keepdims=True) / 127
        scale[scale == 0] = 1
        whole = np.rint(values / scale).astype(np.int8)
        graph.initializer.append(numpy_helper.from_array(whole, f"{name}.int8"))
        graph.initializer.append(numpy_helper.from_array(scale.ravel(), f"{name}.scale"))
        parts = [f"{name}.int8", f"{name}.scale"]
        nodes.append(helper.make_node("DequantizeLinear", parts, [name], axis=axis))
        done.add(name)
    for name in done:
        graph.initializer.remove(stored[name])
    nodes.extend(graph.node)
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.save(model, target)
