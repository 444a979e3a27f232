"""One step of training after another: AdamW, a warm-up, a cosine decay to zero; and its inputs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from .pairs import PairEncoder


class Descent:
    """What turns losses into better weights.

    Args:
        model: only its parameters that want a gradient are trained.
        rate: the highest learning rate.
        steps: after so many the rate is zero.
        warmup: steps in which the rate rises to `rate`; 0 or 1 for none.
    """

    def __init__(self, model: torch.nn.Module, rate: float, steps: int, warmup: int):
        self.weights = [weight for weight in model.parameters() if weight.requires_grad]
        self.optimizer = torch.optim.AdamW(self.weights, lr=rate, weight_decay=0.01)

        def share(step: int) -> float:
            decay = 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps)))
            return min(1.0, (step + 1) / max(1, warmup)) * decay

        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, share)

    def step(self, losses: Iterable[torch.Tensor]) -> None:
        """Change the weights a little so that the sum of these losses falls.

        Each is computed and done with before the next, so that memory holds one at a time.

        Raises:
            FloatingPointError: a loss or the gradient is not a finite number. The weights are as
                before the step.
        """
        self.optimizer.zero_grad()
        for loss in losses:
            self._require_finite(loss, "loss")
            loss.backward()
        length = torch.nn.utils.clip_grad_norm_(self.weights, 1.0)
        self._require_finite(length, "length of the gradient")
        self.optimizer.step()
        self.schedule.step()

    def _require_finite(self, value: torch.Tensor, name: str) -> None:
        if not value.isfinite():
            raise FloatingPointError(
                f"The {name} is {value.item()} at step {self.schedule.last_epoch + 1}: the weights "
                "overflow. Choose a lower rate, and another folder."
            )

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to go on."""
        return {"optimizer": self.optimizer.state_dict(), "schedule": self.schedule.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])


def length_parts(
    encode: PairEncoder,
    pairs: Sequence[tuple[str, str]],
    device: torch.device | str,
    parts: int = 3,
) -> Iterator[tuple[np.ndarray, dict[str, torch.Tensor]]]:
    """Pairs as inputs of a model, in parts of like length, which saves padding.

    Args:
        encode: makes token ids of them, as the trained model will see them made.
        pairs: query and document.
        device: where the inputs go.
        parts: how many.

    Yields:
        The places of a part's pairs, and its inputs. The shortest pairs come first.
    """
    encoded = encode(np.arange(len(pairs)), pairs)
    order = np.argsort(encoded.lengths, kind="stable")
    for part in np.array_split(order, min(parts, len(order))):
        rows = encoded.collate(part)
        yield part, {name: torch.from_numpy(ids).to(device) for name, ids in rows.items()}


def in_order(parts: Sequence[torch.Tensor], places: Sequence[np.ndarray]) -> torch.Tensor:
    """The (pairs,) values of all parts, each at its pair's place."""
    back = np.argsort(np.concatenate(places))
    joined = torch.cat(list(parts))
    return joined[torch.from_numpy(back).to(joined.device)]
