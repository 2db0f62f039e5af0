"""How a rank ends: exit codes, reports, and what a malformed environment gives."""

import json
import signal
from dataclasses import replace

import pytest
import torch

from steadfast_contract.env import RankEnv
from steadfast_contract.exits import ExitCode, RankReport
from steadfast_contract.folder import pulse_path, report_path
from steadfast_contract.heartbeat import read_pulse
from steadfast_contract.models import PRESETS
from steadfast_contract.training import StreamConfig, TrainingConfig
from steadfast_trainer import __main__ as program
from steadfast_trainer.checkpoint.fence import Fenced, RunInUse
from steadfast_trainer.checkpoint.load import CheckpointForeign, CheckpointUnreadable
from steadfast_trainer.checkpoint.save import CheckpointFailed
from steadfast_trainer.checkpoint.store import (
    BucketMissing,
    ObjectMissing,
    PreconditionFailed,
    StoreDenied,
    StoreError,
    StoreUnavailable,
)
from steadfast_trainer.config import ConfigError, rank_config
from steadfast_trainer.data.streams import DataError
from steadfast_trainer.parallel import CollectiveError
from steadfast_trainer.train import NonFiniteLoss

TRAINING = TrainingConfig(
    model=PRESETS["moe-nano"],
    steps=2,
    global_batch_tokens=64,
    run="s3://runs/a",
    tokenizer="s3://corpora/s/tokenizer.json",
    stream=StreamConfig(name="s", remote="s3://corpora/s"),
    device="cpu",
)


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (ConfigError, ExitCode.CONFIG),
        (CheckpointForeign, ExitCode.CONFIG),
        (RunInUse, ExitCode.CONFIG),
        (Fenced, ExitCode.CONFIG),
        (BucketMissing, ExitCode.CONFIG),
        (StoreDenied, ExitCode.CONFIG),
        (DataError, ExitCode.DATA),
        (CheckpointUnreadable, ExitCode.CHECKPOINT_UNREADABLE),
        (NonFiniteLoss, ExitCode.NON_FINITE_LOSS),
        (CollectiveError, ExitCode.COLLECTIVE),
        (StoreError, ExitCode.STORAGE),
        (StoreUnavailable, ExitCode.STORAGE),
        (ObjectMissing, ExitCode.STORAGE),
        (PreconditionFailed, ExitCode.STORAGE),
        (CheckpointFailed, ExitCode.STORAGE),
        (torch.AcceleratorError, ExitCode.GPU),
        (torch.OutOfMemoryError, ExitCode.USER_ERROR),
        (RuntimeError, ExitCode.USER_ERROR),
        (ValueError, ExitCode.USER_ERROR),
        (AssertionError, ExitCode.USER_ERROR),
        (OSError, ExitCode.USER_ERROR),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else value.name,
)
def test_exit_code_of_an_error(kind, code):
    assert program.exit_code_of(kind("boom")) == code


@pytest.fixture
def rank(tmp_path, monkeypatch):
    """Run one rank with an environment; (exit code, report)."""
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)

    def run(**env):
        for name, value in ({"STEADFAST_FOLDER": str(tmp_path), "AWS_ACCESS_KEY_ID": ""} | env).items():
            monkeypatch.setenv(name, value)
        code = program.run_rank()
        return code, RankReport.from_json(report_path(str(tmp_path), local_rank=0).read_text())

    return run


def training(**changes):
    return replace(TRAINING, **changes).to_json()


@pytest.mark.parametrize(
    ("env", "message"),
    [
        pytest.param({}, "set STEADFAST_TRAINING", id="no configuration"),
        pytest.param({"STEADFAST_TRAINING": "{"}, "not JSON", id="not JSON"),
        pytest.param({"STEADFAST_TRAINING": "[1]"}, "no JSON object", id="not an object"),
        pytest.param({"STEADFAST_TRAINING": "{}"}, "steps", id="an empty object"),
        pytest.param({"STEADFAST_TRAINING": '{"colour": 1}'}, "unknown fields: colour", id="an unknown field"),
        pytest.param({"STEADFAST_TRAINING": training(global_batch_tokens=65)}, "not a multiple of", id="odd batch"),
        pytest.param(
            {"STEADFAST_TRAINING": training(), "WORLD_SIZE": "3"}, "shared evenly by 3 ranks", id="too many ranks"
        ),
        pytest.param({"STEADFAST_TRAINING": training(recipe="fp4")}, "'fp4' is not one of", id="unknown recipe"),
        pytest.param(
            {"STEADFAST_TRAINING": training(model=PRESETS["dbrx"], global_batch_tokens=4096)},
            "131.6B parameters need 1961 GiB in every rank",
            id="a model that no machine can hold",
        ),
        pytest.param({"STEADFAST_TRAINING": training(run="/tmp/a")}, "not an object store address", id="a local run"),
        pytest.param({"STEADFAST_TRAINING": training()}, "no credentials", id="no credentials"),
        pytest.param({"RANK": "zero"}, "RANK='zero' is not an integer", id="a rank that is no number"),
    ],
)
def test_a_malformed_configuration_ends_with_64_and_a_report(rank, env, message, capfd):
    code, report = rank(**env)
    assert (code, report.code, report.reported) == (ExitCode.CONFIG, ExitCode.CONFIG, True)
    assert message in report.message
    assert "Traceback" not in report.message
    assert message in capfd.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_a_matter_of_configuration():
    with pytest.raises(ConfigError, match="no usable GPU"):
        rank_config(RankEnv(training=training(device="cuda")))


@pytest.mark.parametrize(("error", "code"), [(NonFiniteLoss("loss nan"), 71), (RuntimeError("boom"), 70)])
def test_a_report_says_how_far_the_rank_came(rank, monkeypatch, error, code, tmp_path):
    def train(config, *, environ, folder, pulse, stopping):
        pulse.update(step=7)
        raise error

    monkeypatch.setattr(program, "train", train)
    ended, report = rank(STEADFAST_TRAINING=training(), STEADFAST_ATTEMPT="3")
    assert (ended, report.code, report.step, report.attempt, report.rank) == (code, code, 7, 3, 0)
    assert ("Traceback" in report.message) == (code == ExitCode.USER_ERROR)
    assert str(error) in report.message
    assert read_pulse(pulse_path(str(tmp_path), local_rank=0)).step == 7


@pytest.mark.parametrize("code", [ExitCode.DONE, ExitCode.SAVED])
def test_a_good_end_is_reported_too(rank, monkeypatch, code):
    monkeypatch.setattr(program, "train", lambda config, **options: code)
    ended, report = rank(STEADFAST_TRAINING=training())
    assert (ended, json.loads(report.to_json())["code"], report.message) == (code, code, "")
