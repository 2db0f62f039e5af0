"""The training configuration and the table of models."""

import json
from dataclasses import replace

import pytest
import torch

from steadfast_contract.models import PRESETS, ModelShape
from steadfast_contract.training import OptimizerConfig, ScheduleConfig, StreamConfig, TrainingConfig
from steadfast_trainer.mfu import flops_per_token, mfu
from steadfast_trainer.model.transformer import Transformer

NANO = PRESETS["moe-nano"]
CONFIG = TrainingConfig(
    model=NANO,
    steps=10,
    global_batch_tokens=256,
    run="s3://runs/a",
    tokenizer="s3://corpora/t.json",
    stream=StreamConfig(name="s", remote="s3://corpora/s"),
    optimizer=OptimizerConfig(learning_rate=1e-3),
    schedule=ScheduleConfig(warmup_steps=3, decay="constant"),
    resume="never",
)


def test_a_configuration_round_trips():
    assert TrainingConfig.from_json(CONFIG.to_json()) == CONFIG
    assert CONFIG.global_batch_samples == 8


def changed(**changes):
    return json.dumps(json.loads(CONFIG.to_json()) | changes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("{", "not JSON", id="cut off"),
        pytest.param("[1]", "no JSON object", id="a list"),
        pytest.param("3", "no JSON object", id="a number"),
        pytest.param("null", "no JSON object", id="null"),
        pytest.param(changed(colour=1, shape=2), "unknown fields: colour, shape", id="unknown fields"),
        pytest.param(changed(stream={"name": "s"}), "remote", id="a nested field is missing"),
        pytest.param(changed(model=None), "training configuration", id="the model is null"),
        pytest.param(changed(optimizer={"rate": 1}), "rate", id="a nested field is unknown"),
        pytest.param("{}", "steps", id="empty"),
        pytest.param(
            changed(model=json.loads(CONFIG.to_json())["model"] | {"heads": 5}), "heads 5", id="an impossible model"
        ),
    ],
)
def test_a_malformed_configuration_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        TrainingConfig.from_json(text)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_the_table_counts_every_parameter_of_the_real_model(name):
    with torch.device("meta"):
        model = Transformer(PRESETS[name])
    assert PRESETS[name].total_parameters == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_active_parameters_are_those_of_a_model_with_only_the_chosen_experts(name):
    shape = PRESETS[name]
    few = replace(shape, experts=shape.experts_per_token)
    unused_router = shape.layers * shape.hidden_size * (shape.experts - shape.experts_per_token)
    assert shape.active_parameters == few.total_parameters + unused_router


def test_dbrx_has_its_published_size():
    dbrx = PRESETS["dbrx"]
    assert (round(dbrx.total_parameters / 1e9), round(dbrx.active_parameters / 1e9)) == (132, 36)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 33}, "hiddenSize 33 is not divisible by heads 4"),
        ({"hidden_size": 12}, "must be even"),
        ({"kv_heads": 3}, "heads 4 is not divisible by kvHeads 3"),
        ({"experts_per_token": 5}, "expertsPerToken 5 exceeds experts 4"),
    ],
)
def test_an_impossible_shape_names_its_fields(change, message):
    with pytest.raises(ValueError, match=message):
        replace(NANO, **change)


def test_flops_count_what_a_token_passes_through():
    one = ModelShape(
        layers=1,
        hidden_size=2,
        heads=1,
        kv_heads=1,
        ffn_hidden_size=3,
        experts=5,
        experts_per_token=1,
        vocabulary_size=7,
        context_length=4,
    )
    attention, router, norms, expert, head, last_norm = 4 * 2 * 2, 2 * 5, 2 * 2, 3 * 2 * 3, 7 * 2, 2
    assert flops_per_token(one) == 6 * (attention + router + norms + expert + head + last_norm)
    assert mfu(tokens_per_second_per_gpu=10, shape=one, peak_flops=100.0) == flops_per_token(one) / 10
