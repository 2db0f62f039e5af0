"""The model: positions, attention, weights, and that it learns."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from steadfast_contract.models import PRESETS
from steadfast_contract.training import OptimizerConfig
from steadfast_trainer.model.attention import Attention
from steadfast_trainer.model.rope import rotate, rotation_table
from steadfast_trainer.model.router import routing_loss
from steadfast_trainer.model.transformer import Transformer, next_token_loss
from steadfast_trainer.optim import AdamW
from steadfast_trainer.parallel import FlatParameters

TINY = replace(PRESETS["moe-nano"], vocabulary_size=50, context_length=16)


def a_model(shape=TINY, *, seed=0, **options):
    model = Transformer(shape, **options)
    model.initialise(seed)
    return model


def attention_of(shape, *, seed=0):
    torch.manual_seed(seed)
    attention = Attention(shape)
    table = rotation_table(shape.context_length, shape.head_size, theta=shape.rope_theta)
    return attention, table


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 20), st.sampled_from([2, 8, 16]))
def test_a_product_of_rotated_vectors_depends_on_their_distance_only(first, second, shift, head_size):
    cos_TA, sin_TA = rotation_table(64, head_size, theta=10_000.0)
    q_A, k_A = torch.randn(2, head_size, generator=torch.Generator().manual_seed(1)).unbind()

    def product(at_q, at_k):
        q = rotate(q_A, cos_TA[at_q], sin_TA[at_q])
        return q @ rotate(k_A, cos_TA[at_k], sin_TA[at_k])

    torch.testing.assert_close(product(first, second), product(first + shift, second + shift), atol=1e-4, rtol=1e-4)


def test_a_rotation_keeps_lengths_and_leaves_position_zero_alone():
    cos_TA, sin_TA = rotation_table(16, 8, theta=10_000.0)
    x_HTA = torch.randn(3, 16, 8)
    turned_HTA = rotate(x_HTA, cos_TA, sin_TA)
    torch.testing.assert_close(turned_HTA.norm(dim=-1), x_HTA.norm(dim=-1))
    torch.testing.assert_close(turned_HTA[:, 0], x_HTA[:, 0])
    assert not torch.allclose(turned_HTA[:, 5], x_HTA[:, 5])


def test_a_rotation_turns_each_pair_by_its_own_angle():
    cos_TA, sin_TA = rotation_table(8, 4, theta=100.0)
    x_A = torch.tensor([1.0, 2.0, 0.0, 0.0])  # pairs (0, 2) and (1, 3)
    angles = torch.tensor([3.0, 3.0 / 10])
    expected_A = torch.cat((torch.tensor([1.0, 2.0]) * angles.cos(), torch.tensor([1.0, 2.0]) * angles.sin()))
    torch.testing.assert_close(rotate(x_A, cos_TA[3], sin_TA[3]), expected_A)


def test_attention_does_not_look_ahead():
    attention, table = attention_of(TINY)
    x_BTD = torch.randn(2, 16, 32)
    other_BTD = x_BTD.clone()
    other_BTD[:, 9:] = torch.randn(2, 7, 32)
    before, after = attention(x_BTD, *table), attention(other_BTD, *table)
    torch.testing.assert_close(before[:, :9], after[:, :9])
    assert not torch.allclose(before[:, 9:], after[:, 9:])


def test_the_model_does_not_look_ahead():
    model = a_model()
    token_BT = torch.randint(0, 50, (2, 16))
    other_BT = token_BT.clone()
    other_BT[:, 9:] = (other_BT[:, 9:] + 1) % 50
    before, after = model(token_BT).logits_BTV, model(other_BT).logits_BTV
    torch.testing.assert_close(before[:, :9], after[:, :9])
    assert not torch.allclose(before[:, 9:], after[:, 9:])


def test_every_earlier_position_matters():
    attention, table = attention_of(TINY)
    x_BTD = torch.randn(1, 16, 32, requires_grad=True)
    attention(x_BTD, *table)[:, -1].sum().backward()
    assert (x_BTD.grad.abs().sum(dim=-1) > 0).all()


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_shared_key_heads_equal_repeated_ones(kv_heads):
    shape = replace(TINY, kv_heads=kv_heads)
    attention, (cos_TA, sin_TA) = attention_of(shape)
    x_BTD = torch.randn(2, 16, 32)
    q, k, v = (x_BTD @ attention.query_key_value.weight.t()).split((32, kv_heads * 8, kv_heads * 8), dim=-1)
    mixed = []
    for head in range(4):
        shared = head // (4 // kv_heads)
        q_BTA, k_BTA = q[..., head * 8 : head * 8 + 8], k[..., shared * 8 : shared * 8 + 8]
        score_BTT = rotate(q_BTA, cos_TA, sin_TA) @ rotate(k_BTA, cos_TA, sin_TA).transpose(1, 2) / 8**0.5
        score_BTT = score_BTT.masked_fill(torch.ones(16, 16).triu(1).bool(), float("-inf"))
        mixed.append(score_BTT.softmax(dim=-1) @ v[..., shared * 8 : shared * 8 + 8])
    torch.testing.assert_close(attention(x_BTD, cos_TA, sin_TA), attention.output(torch.cat(mixed, dim=-1)))


def test_the_same_seed_gives_the_same_weights_whatever_else_draws():
    first = a_model(seed=3)
    torch.rand(5)
    second, other = a_model(seed=3), a_model(seed=4)
    assert all(torch.equal(p, q) for p, q in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.head.weight, other.head.weight)


def test_fresh_weights_have_the_intended_spread():
    model = a_model(replace(TINY, layers=8, hidden_size=64))
    for name, parameter in model.named_parameters():
        residual = name.endswith(("attention.output.weight", "w2_EDF"))
        if parameter.dim() == 1:
            assert torch.equal(parameter, torch.ones_like(parameter)), name
        else:
            assert parameter.std().item() == pytest.approx(0.02 / (4 if residual else 1), rel=0.2), name


def test_a_fresh_model_knows_nothing():
    token_BT = torch.randint(0, 50, (4, 17))
    loss = next_token_loss(a_model()(token_BT[:, :-1]).logits_BTV, token_BT[:, 1:])
    assert loss.item() == pytest.approx(torch.tensor(50.0).log().item(), rel=0.02)


def test_the_loss_is_the_mean_cross_entropy_in_fp32():
    logits_BTV, target_BT = torch.randn(2, 3, 5), torch.randint(0, 5, (2, 3))
    expected = -logits_BTV.log_softmax(-1).gather(-1, target_BT.unsqueeze(-1)).mean()
    torch.testing.assert_close(next_token_loss(logits_BTV, target_BT), expected)
    assert next_token_loss(logits_BTV.bfloat16(), target_BT).dtype == torch.float32


def test_a_tiny_batch_is_learnt_by_heart():
    model = a_model(replace(TINY, layers=1))
    token_BT = torch.randint(0, 50, (2, 17), generator=torch.Generator().manual_seed(5))
    flat = FlatParameters(model)
    optimizer = AdamW(flat, OptimizerConfig())
    losses = []
    for _ in range(30):
        flat.zero_gradients()
        output = model(token_BT[:, :-1])
        loss = next_token_loss(output.logits_BTV, token_BT[:, 1:])
        balance = routing_loss(count_LE=output.count_LE, probability_LE=output.probability_LE, z_L=output.z_L)
        (loss + balance).backward()
        optimizer.step(learning_rate=1e-2, gradient_norm=flat.gradients.norm().item())
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


def test_every_parameter_learns():
    model = a_model()
    token_BT = torch.randint(0, 50, (4, 17))
    output = model(token_BT[:, :-1])
    F.cross_entropy(output.logits_BTV.flatten(0, 1), token_BT[:, 1:].flatten()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []
