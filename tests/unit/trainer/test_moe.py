"""The expert layer against a loop over tokens, and the grouping and balance that it rests on."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from steadfast_contract.models import PRESETS
from steadfast_trainer.model.moe import MixtureOfExperts, group_by_expert
from steadfast_trainer.model.router import LOAD_BALANCE_WEIGHT, ROUTER_Z_WEIGHT, Routing, routing_loss

SHAPE = replace(PRESETS["moe-nano"], hidden_size=16, ffn_hidden_size=24, experts=5, experts_per_token=2)
FP32 = pytest.mark.parametrize("group_rows", [1, 8, 32])


def a_layer(*, shape=SHAPE, dtype=torch.float32, group_rows=1, seed=0, std=0.3):
    layer = MixtureOfExperts(shape, dtype=dtype, group_rows=group_rows)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
    return layer


def naive(layer, x_BTD):
    """One token after the other, one expert after the other."""
    rows = []
    for x_D in x_BTD.flatten(0, 1):
        probability_E = (layer.router.weight @ x_D).softmax(dim=0)
        chosen = probability_E.argsort(descending=True)[: layer.router.experts_per_token]
        total = sum(probability_E[e] for e in chosen)
        y_D = torch.zeros_like(x_D)
        for e in chosen:
            hidden_F = F.silu(layer.w1_EFD[e] @ x_D) * (layer.w3_EFD[e] @ x_D)
            y_D = y_D + probability_E[e] / total * (layer.w2_EDF[e] @ hidden_F)
        rows.append(y_D)
    return torch.stack(rows).view_as(x_BTD)


def gradients(layer, x_BTD, y_BTD):
    direction_BTD = torch.randn(y_BTD.shape, generator=torch.Generator().manual_seed(9))
    return torch.autograd.grad((y_BTD * direction_BTD).sum(), [x_BTD, *layer.parameters()])


@FP32
@pytest.mark.parametrize("chosen", [1, 2, 5], ids=["one expert", "two experts", "all experts"])
def test_the_layer_equals_a_loop_over_tokens_forward_and_backward(group_rows, chosen):
    layer = a_layer(shape=replace(SHAPE, experts_per_token=chosen), group_rows=group_rows)
    x_BTD = torch.randn(2, 7, 16, generator=torch.Generator().manual_seed(1), requires_grad=True)
    y_BTD, _ = layer(x_BTD)
    expected_BTD = naive(layer, x_BTD)
    torch.testing.assert_close(y_BTD, expected_BTD, rtol=1e-5, atol=1e-6)
    names = ["x", *(name for name, _ in layer.named_parameters())]
    pairs = zip(names, gradients(layer, x_BTD, y_BTD), gradients(layer, x_BTD, expected_BTD), strict=True)
    for name, ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


@FP32
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_an_expert_without_tokens_gets_a_zero_gradient(group_rows, dtype):
    layer = a_layer(shape=replace(SHAPE, experts_per_token=1), group_rows=group_rows, dtype=dtype)
    with torch.no_grad():
        layer.router.weight.zero_()[2] = 10.0  # positive inputs all go to expert 2
    y_BTD, routing = layer(torch.rand(1, 6, 16) + 0.1)
    y_BTD.square().sum().backward()
    assert routing.count_E.tolist() == [0, 0, 6, 0, 0]
    for weight in (layer.w1_EFD, layer.w2_EDF, layer.w3_EFD):
        assert weight.grad.dtype == torch.float32
        assert weight.grad[2].abs().sum() > 0
        assert weight.grad[[0, 1, 3, 4]].eq(0).all()


def test_rows_behind_the_last_group_leave_no_trace():
    """They are memory that nobody wrote: fill all fresh memory with NaN, forward and backward."""
    layer = a_layer(group_rows=32)
    x_BTD = torch.randn(1, 5, 16, requires_grad=True)
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.utils.deterministic.fill_uninitialized_memory
        y_BTD, _ = layer(x_BTD)
        found = gradients(layer, x_BTD, y_BTD)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.isfinite(tensor).all() for tensor in (y_BTD, *found))


@pytest.mark.parametrize("group_rows", [8, 32])
def test_bf16_stays_close_to_fp32(group_rows):
    exact, rounded = a_layer(std=0.2), a_layer(std=0.2, dtype=torch.bfloat16, group_rows=group_rows)
    x_BTD = torch.randn(2, 9, 16, generator=torch.Generator().manual_seed(1), requires_grad=True)
    (y_BTD, routing), (z_BTD, routing_bf16) = exact(x_BTD), rounded(x_BTD)
    assert torch.equal(routing.expert_NC, routing_bf16.expert_NC)  # the router stays in fp32
    assert (z_BTD - y_BTD).norm() < 0.02 * y_BTD.norm()
    for ours, theirs in zip(gradients(rounded, x_BTD, z_BTD), gradients(exact, x_BTD, y_BTD), strict=True):
        assert ours.isfinite().all()
        assert (ours - theirs).norm() < 0.03 * theirs.norm()


def routing_of(expert_NC, *, experts):
    expert_NC = torch.tensor(expert_NC).view(len(expert_NC), -1)
    count_E = torch.bincount(expert_NC.flatten(), minlength=experts).float()
    return Routing(expert_NC, torch.ones_like(expert_NC), count_E, torch.zeros(experts), torch.zeros(()))


@st.composite
def choices(draw):
    experts = draw(st.integers(1, 9))
    chosen = draw(st.integers(1, experts))
    token = st.permutations(range(experts)).map(lambda order: order[:chosen])
    return experts, draw(st.lists(token, min_size=1, max_size=40))


@settings(deadline=None)
@given(choices(), st.sampled_from([1, 8, 32]))
def test_grouping_by_expert(choice, group_rows):
    experts, expert_NC = choice
    row_NC, ends_E, num_rows = group_by_expert(routing_of(expert_NC, experts=experts), group_rows=group_rows)
    starts_E = [0, *ends_E.tolist()[:-1]]
    assert ends_E.dtype == torch.int32
    assert len(set(row_NC.flatten().tolist())) == row_NC.numel(), "no two choices share a row"
    assert ends_E[-1] <= num_rows, "all groups fit"
    assert all(end % group_rows == 0 for end in ends_E.tolist()), "groups are padded"
    for expert, (start, end) in enumerate(zip(starts_E, ends_E.tolist(), strict=True)):
        rows = [
            row
            for rows, chosen in zip(row_NC.tolist(), expert_NC, strict=True)
            for row, e in zip(rows, chosen, strict=True)
            if e == expert
        ]
        assert rows == list(range(start, start + len(rows))), "rows of an expert are adjacent, in token order"
        assert 0 <= end - start - len(rows) < group_rows, "no more padding than needed"


def test_the_load_balance_loss_of_a_perfect_balance_is_one():
    even = torch.full((3, 4), 0.25)
    loss = routing_loss(count_LE=even * 100, probability_LE=even, z_L=torch.tensor([1.0, 2.0, 3.0]))
    assert loss.item() == pytest.approx(LOAD_BALANCE_WEIGHT + 2 * ROUTER_Z_WEIGHT)


def test_the_load_balance_loss_of_a_collapsed_router_is_the_number_of_experts():
    one = torch.tensor([[1.0, 0, 0, 0]])
    loss = routing_loss(count_LE=one * 100, probability_LE=one, z_L=torch.zeros(1))
    assert loss.item() == pytest.approx(4 * LOAD_BALANCE_WEIGHT)


@pytest.mark.parametrize("ranks", [2, 4])
def test_the_mean_over_ranks_with_global_counts_equals_one_big_batch(ranks):
    layer = a_layer(std=1.0)
    x_BTD = torch.randn(8, 6, 16, generator=torch.Generator().manual_seed(1))

    def loss_and_gradient(parts, counts):
        losses = []
        for part, count_E in zip(parts, counts, strict=True):
            _, r = layer(part)
            losses.append(routing_loss(count_LE=count_E[None], probability_LE=r.probability_E[None], z_L=r.z[None]))
        loss = torch.stack(losses).mean()
        return loss, torch.autograd.grad(loss, layer.router.weight)[0]

    parts = x_BTD.chunk(ranks)
    total_E = sum(layer(part)[1].count_E for part in parts)
    torch.testing.assert_close(total_E, layer(x_BTD)[1].count_E)
    many = loss_and_gradient(parts, [total_E] * ranks)
    torch.testing.assert_close(many, loss_and_gradient([x_BTD], [total_E]), rtol=1e-5, atol=1e-7)
    alone = loss_and_gradient(parts, [layer(part)[1].count_E for part in parts])
    assert not torch.allclose(alone[0], many[0], rtol=1e-5), "counts of one rank give another loss"


def test_mixing_weights_add_up_to_one_and_follow_the_probabilities():
    layer = a_layer()
    _, routing = layer(torch.randn(2, 5, 16))
    torch.testing.assert_close(routing.weight_NC.sum(dim=-1), torch.ones(10))
    assert (routing.weight_NC[:, 0] >= routing.weight_NC[:, 1]).all()
    assert not routing.count_E.requires_grad
