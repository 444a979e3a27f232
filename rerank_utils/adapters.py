"""LoRA adapters in training: added to the weights they adapt, once a step."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch.func import functional_call

from .encoder import FirstTokenScorer

if TYPE_CHECKING:
    from peft import PeftModel


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
