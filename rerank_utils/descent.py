"""One step of training after another: AdamW, a warm-up, a cosine decay to zero."""

from __future__ import annotations

import math
from typing import Any

import torch


class Descent:
    """What turns losses into better weights.

    Args:
        model: only its parameters that want a gradient are trained.
        rate: the highest learning rate.
        steps: after so many the rate is zero.
        warmup: steps in which the rate rises to `rate`.
    """

    def __init__(self, model: torch.nn.Module, rate: float, steps: int, warmup: int):
        self.weights = [weight for weight in model.parameters() if weight.requires_grad]
        self.optimizer = torch.optim.AdamW(self.weights, lr=rate, weight_decay=0.01)

        def share(step: int) -> float:
            decay = 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps)))
            return min(1.0, (step + 1) / warmup) * decay

        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, share)

    def step(self, loss: torch.Tensor) -> None:
        """Change the weights a little so that this loss falls."""
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.weights, 1.0)
        self.optimizer.step()
        self.schedule.step()

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to go on."""
        return {"optimizer": self.optimizer.state_dict(), "schedule": self.schedule.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
