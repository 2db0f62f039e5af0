"""One flat buffer for weights and one for gradients, AdamW over them, and the learning rate."""

import math
from dataclasses import replace

import pytest
import torch

from steadfast_contract.env import RankEnv
from steadfast_contract.models import PRESETS
from steadfast_contract.training import OptimizerConfig, ScheduleConfig, StreamConfig, TrainingConfig
from steadfast_trainer.model.transformer import Transformer
from steadfast_trainer.optim import AdamW, learning_rate_at
from steadfast_trainer.parallel import FlatParameters, World

SHAPE = replace(PRESETS["moe-nano"], vocabulary_size=40, context_length=8, layers=1)
CONFIG = OptimizerConfig(learning_rate=1e-2, weight_decay=0.3)
LONE = World(rank=0, size=1, device=torch.device("cpu"), env=RankEnv(), namespace="test")
TOKEN_BT = torch.randint(0, 40, (3, 8), generator=torch.Generator().manual_seed(2))


def a_model(seed=0):
    model = Transformer(SHAPE)
    model.initialise(seed)
    return model


def backward(model, step):
    logits_BTV = model((TOKEN_BT + step) % 40).logits_BTV
    torch.nn.functional.cross_entropy(logits_BTV.flatten(0, 1), TOKEN_BT.flatten()).backward()


def test_flattening_keeps_the_weights():
    model, untouched = a_model(), a_model()
    FlatParameters(model)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), untouched.parameters(), strict=True))


def test_weights_of_the_model_are_views_of_the_buffer():
    model = a_model()
    flat = FlatParameters(model)
    flat.weights.fill_(7.0)
    assert all((p == 7.0).all() for p in model.parameters())
    model.initialise(3)
    assert torch.equal(flat.view_like_weights(flat.weights)["head.weight"], a_model(3).head.weight)


def test_autograd_adds_into_the_flat_gradients():
    model, plain = a_model(), a_model()
    flat = FlatParameters(model)
    before = [p.grad for p in model.parameters()]
    for step in range(2):
        backward(model, step)
        backward(plain, step)
    assert all(p.grad is b for p, b in zip(model.parameters(), before, strict=True))
    views = flat.view_like_weights(flat.gradients)
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(views[name], parameter.grad, rtol=0, atol=0)
    flat.zero_gradients()
    assert not any(p.grad.any() for p in model.parameters())


def test_matrices_come_first_and_nothing_is_lost():
    flat = FlatParameters(a_model())
    parameters = dict(a_model().named_parameters())
    assert sorted(flat.names) == sorted(parameters)
    assert flat.num_decayed == sum(p.numel() for p in parameters.values() if p.dim() > 1)
    assert flat.weights.numel() == SHAPE.total_parameters
    dims = [parameters[name].dim() > 1 for name in flat.names]
    assert dims == sorted(dims, reverse=True)


def reference(model):
    """torch's own AdamW on the separate parameters, decay on matrices only."""
    groups = [
        {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": CONFIG.weight_decay},
        {"params": [p for p in model.parameters() if p.dim() == 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=1e-2, betas=(CONFIG.beta1, CONFIG.beta2), eps=CONFIG.epsilon, fused=True)


@pytest.mark.parametrize("scale", [1e-3, 1.0], ids=["within the clip", "clipped"])
def test_five_steps_equal_those_of_torch(scale):
    model, plain = a_model(), a_model()
    flat = FlatParameters(model)
    ours, theirs = AdamW(flat, CONFIG), reference(plain)
    generator = torch.Generator().manual_seed(3)
    for step in range(5):
        flat.zero_gradients()
        for p, q in zip(model.parameters(), plain.parameters(), strict=True):
            p.grad += torch.randn(p.shape, generator=generator) * scale
            q.grad = p.grad.clone()
        norm = flat.reduce(LONE, loss=torch.zeros(()), save=False, stop=False).gradient_norm
        if norm > CONFIG.gradient_clip:
            for q in plain.parameters():
                q.grad *= CONFIG.gradient_clip / norm
        assert (norm > CONFIG.gradient_clip) == (scale == 1.0)
        rate = 1e-2 / (step + 1)
        ours.step(learning_rate=rate, gradient_norm=norm)
        for group in theirs.param_groups:
            group["lr"] = rate
        theirs.step()
    for (name, p), q in zip(model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize(
    ("norm", "factor"), [(0.5, 1.0), (1.0, 1.0), (4.0, 0.25)], ids=["below", "at the bound", "above"]
)
def test_gradients_are_clipped_by_their_global_norm(norm, factor):
    flat = FlatParameters(a_model())
    flat.gradients.fill_(1.0)
    AdamW(flat, CONFIG).step(learning_rate=0.0, gradient_norm=norm)
    assert flat.gradients.unique().item() == pytest.approx(factor)


def test_only_matrices_decay():
    model = a_model()
    flat = FlatParameters(model)
    AdamW(flat, CONFIG).step(learning_rate=0.5, gradient_norm=0.0)
    for name, parameter in model.named_parameters():
        before = dict(a_model().named_parameters())[name]
        kept = 1 - 0.5 * CONFIG.weight_decay if parameter.dim() > 1 else 1.0
        torch.testing.assert_close(parameter.data, before * kept)


def test_a_resumed_optimizer_continues_bit_for_bit():
    def run(steps, flat, model, optimizer):
        for step in steps:
            flat.zero_gradients()
            backward(model, step)
            optimizer.step(learning_rate=1e-2, gradient_norm=0.5)

    model = a_model()
    flat = FlatParameters(model)
    optimizer = AdamW(flat, CONFIG)
    run(range(3), flat, model, optimizer)
    saved = [flat.weights.clone(), *(b.clone() for b in optimizer.buffers().values())]
    run(range(3, 6), flat, model, optimizer)

    other = a_model(9)
    flat_other = FlatParameters(other)
    resumed = AdamW(flat_other, CONFIG)
    for buffer, value in zip([flat_other.weights, *resumed.buffers().values()], saved, strict=True):
        buffer.copy_(value)
    resumed.resume_at(3)
    run(range(3, 6), flat_other, other, resumed)
    assert torch.equal(flat.weights, flat_other.weights)
    assert torch.equal(optimizer.square, resumed.square)


@pytest.mark.parametrize(("save", "stop"), [(False, False), (True, False), (False, True), (True, True)])
def test_alone_one_agrees_with_oneself(save, stop):
    flat = FlatParameters(a_model())
    flat.gradients[:2] = torch.tensor([3.0, 4.0])
    agreed = flat.reduce(LONE, loss=torch.tensor(2.5), save=save, stop=stop)
    assert agreed == (2.5, 5.0, save, stop)


def a_config(steps, **schedule):
    return TrainingConfig(
        model=SHAPE,
        steps=steps,
        global_batch_tokens=8,
        run="",
        tokenizer="",
        stream=StreamConfig(name="", remote=""),
        optimizer=OptimizerConfig(learning_rate=1.0),
        schedule=ScheduleConfig(**schedule),
    )


GOLDEN = [
    pytest.param(a_config(8, warmup_steps=4), [0.25, 0.5, 0.75, 1, 1, 0.868198, 0.55, 0.231802, 0.1], id="cosine"),
    pytest.param(a_config(4, warmup_steps=2, decay="constant"), [0.5, 1, 1, 1, 1], id="constant"),
    pytest.param(a_config(2, final_fraction=0.0), [1, 0.5, 0, 0], id="no warm-up, down to nothing"),
    pytest.param(a_config(3, warmup_steps=3), [1 / 3, 2 / 3, 1, 1], id="warm-up to the very end"),
    pytest.param(a_config(2, warmup_steps=4), [0.25, 0.5, 0.75, 1], id="fewer steps than warm-up"),
]


@pytest.mark.parametrize(("config", "rates"), GOLDEN)
def test_learning_rates(config, rates):
    assert [learning_rate_at(step, config) for step in range(len(rates))] == pytest.approx(rates, abs=1e-6)


@pytest.mark.parametrize("warmup", [0, 10, 37])
def test_the_learning_rate_rises_once_then_falls_to_its_final_fraction(warmup):
    config = a_config(100, warmup_steps=warmup)
    rates = [learning_rate_at(step, config) for step in range(101)]
    top = rates.index(max(rates))
    assert max(rates) == 1.0
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert rates[100] == pytest.approx(0.1)
    assert all(math.isfinite(rate) and rate > 0 for rate in rates)
