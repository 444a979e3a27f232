"""LoRA adapters in training: put on a model, kept, and added to the weights they adapt."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.func import functional_call

from .bundled import quiet_peft
from .encoder import FirstTokenScorer

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


def adapt(base: PreTrainedModel, rank: int, alpha: int, head: Sequence[str] = ()) -> PeftModel:
    """A model with LoRA adapters on all linear layers of its encoder, which alone are trained.

    Args:
        base: a BERT, XLM-RoBERTa or MPNet.
        rank, alpha: of the adapters.
        head: its modules that are trained too, in full.
    """
    from peft import LoraConfig, get_peft_model

    if base.device.type == "cpu":
        base.config._attn_implementation = "eager"  # its backward pass is twice as fast there
    base.requires_grad_(False)
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=r".*encoder.*\.(query|key|value|dense|q|k|v|o)",
        modules_to_save=list(head) or None,
        task_type="SEQ_CLS" if head else None,
    )
    with quiet_peft():
        return get_peft_model(base, config)


def trained(model: PeftModel) -> dict[str, torch.Tensor]:
    """The weights that training changes."""
    return {
        name: value
        for name, value in model.state_dict().items()
        if "lora_" in name or "modules_to_save" in name
    }


def load_trained(model: PeftModel, weights: dict[str, torch.Tensor], source: Path) -> None:
    """Put such weights back; ValueError where they are of another model."""
    odd = model.load_state_dict(weights, strict=False).unexpected_keys
    if odd:
        raise ValueError(f"{source} holds weights this model has not, such as {odd[0]}.")


class AdaptedScorer:
    """The logits of a model with LoRA adapters, as a model without any computes them.

    PEFT multiplies every token with the weight and with both matrices of its adapter. There are
    thousands of tokens in a step, and its weights are the same for all of them:

        W x + s B (A x) = (W + s B A) x

    So the adapters are added to the weights before the first pass, and the gradient of the sums is
    carried back to them after the last. The numbers are the same up to rounding.

    Args:
        model: a BERT-like cross-encoder with LoRA adapters, as PEFT makes it.
    """

    def __init__(self, model: PeftModel):
        self.model = model
        self.plain = FirstTokenScorer(copy.deepcopy(model).unload())

    @contextmanager
    def step(self) -> Iterator[Callable[..., torch.Tensor]]:
        """What scores the pairs of one step: from inputs (rows, tokens) to (rows,) logits.

        The losses of all scores are to be brought back (`backward`) before this ends.
        """
        sums = self._sums()
        leaves = {name: weight.detach().requires_grad_() for name, weight in sums.items()}

        def score(**inputs: torch.Tensor) -> torch.Tensor:
            return functional_call(self.plain, leaves, kwargs=inputs)

        yield score
        names = [name for name, leaf in leaves.items() if leaf.grad is not None]
        torch.autograd.backward(
            [sums[name] for name in names], [leaves[name].grad for name in names]
        )

    def _sums(self) -> dict[str, torch.Tensor]:
        """What is trained, under the names that `plain` has for it."""
        from peft.tuners.lora import LoraLayer
        from peft.utils import ModulesToSaveWrapper

        found = {}
        for name, module in self.model.base_model.model.named_modules():
            if isinstance(module, LoraLayer):
                added = [module.get_delta_weight(adapter) for adapter in module.active_adapters]
                found[f"model.{name}.weight"] = module.get_base_layer().weight + sum(added)
            elif isinstance(module, ModulesToSaveWrapper):
                trained = module.modules_to_save[module.active_adapters[0]]
                for part, weight in trained.named_parameters():
                    found[f"model.{name}.{part}"] = weight
        return found
