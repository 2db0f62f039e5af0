"""AdamW over the flat parameter buffer, and the learning rate as a function of the step."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from steadfast_contract.training import OptimizerConfig, TrainingConfig
from steadfast_trainer.parallel import FlatParameters


def learning_rate_at(step: int, config: TrainingConfig) -> float:
    """Rate of the step with this index, counted from 0.

    It rises in a line over the warm-up, then falls along half a cosine (or stays) until the last step.
    """
    peak, schedule = config.optimizer.learning_rate, config.schedule
    if step < schedule.warmup_steps:
        return peak * (step + 1) / schedule.warmup_steps
    if schedule.decay == "constant":
        return peak
    progress = (step - schedule.warmup_steps) / max(1, config.steps - schedule.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return peak * (schedule.final_fraction + (1 - schedule.final_fraction) * cosine)


class AdamW:
    """Fused AdamW with decoupled weight decay (Loshchilov and Hutter 2017, arXiv 1711.05101).

    Its whole state is two buffers shaped like the weights and the number of steps taken. It calls torch's fused kernel
    itself: making a `torch.optim.Optimizer` imports torch's compiler, four seconds in every rank.
    """

    def __init__(self, flat: FlatParameters, config: OptimizerConfig) -> None:
        self.mean = torch.zeros_like(flat.weights)
        self.square = torch.zeros_like(flat.weights)
        self._config = config
        self._flat = flat
        self._steps = torch.zeros((), device=flat.weights.device)

    def step(self, *, learning_rate: float, gradient_norm: float) -> None:
        """Clip by the global norm, then move the weights."""
        config, flat = self._config, self._flat
        if gradient_norm > config.gradient_clip:
            flat.gradients.mul_(config.gradient_clip / gradient_norm)
        self._steps += 1
        matrices, vectors = slice(0, flat.num_decayed), slice(flat.num_decayed, None)
        for part, weight_decay in ((matrices, config.weight_decay), (vectors, 0.0)):
            torch._fused_adamw_(
                [flat.weights[part]],
                [flat.gradients[part]],
                [self.mean[part]],
                [self.square[part]],
                [],
                [self._steps],
                lr=learning_rate,
                beta1=config.beta1,
                beta2=config.beta2,
                weight_decay=weight_decay,
                eps=config.epsilon,
                amsgrad=False,
                maximize=False,
            )

    def resume_at(self, step: int) -> None:
        """Set the number of steps taken, after `mean` and `square` were restored in place."""
        self._steps.fill_(step)

    def buffers(self) -> dict[str, Tensor]:
        """The state by name, as checkpoints store it."""
        return {"adam.mean": self.mean, "adam.square": self.square}
