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

    Its whole state is two buffers shaped like the weights and the number of steps taken.
    """

    def __init__(self, flat: FlatParameters, config: OptimizerConfig) -> None:
        self.mean = torch.zeros_like(flat.weights)
        self.square = torch.zeros_like(flat.weights)
        self._clip = config.gradient_clip
        self._gradients = flat.gradients
        split = flat.num_decayed
        slices = [slice(0, split), slice(split, None)]
        parameters = [torch.nn.Parameter(flat.weights[s]) for s in slices]
        self._steps = []
        for parameter, s in zip(parameters, slices, strict=True):
            parameter.grad = flat.gradients[s]
        self._inner = torch.optim.AdamW(
            [
                {"params": parameters[:1], "weight_decay": config.weight_decay},
                {"params": parameters[1:], "weight_decay": 0.0},
            ],
            betas=(config.beta1, config.beta2),
            eps=config.epsilon,
            fused=True,
        )
        for parameter, s in zip(parameters, slices, strict=True):
            steps = torch.zeros((), device=parameter.device)
            self._steps.append(steps)
            self._inner.state[parameter] = {
                "step": steps,
                "exp_avg": self.mean[s],
                "exp_avg_sq": self.square[s],
            }

    def step(self, *, learning_rate: float, gradient_norm: float) -> None:
        """Clip by the global norm, then move the weights."""
        if gradient_norm > self._clip:
            self._gradients.mul_(self._clip / gradient_norm)
        for group in self._inner.param_groups:
            group["lr"] = learning_rate
        self._inner.step()

    def resume_at(self, step: int) -> None:
        """Set the number of steps taken, after `mean` and `square` were restored in place."""
        for steps in self._steps:
            steps.fill_(step)

    def buffers(self) -> dict[str, Tensor]:
        """The state by name, as checkpoints store it."""
        return {"adam.mean": self.mean, "adam.square": self.square}
