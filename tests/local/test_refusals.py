"""What cannot be trained is refused at the first attempt, with words that say what to do; nothing is overwritten."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from local.conftest import LocalRun, nano
from oracle import newest_checkpoint
from steadfast_contract.checkpoints import LATEST, Latest
from steadfast_trainer.checkpoint.store import ObjectStore

pytestmark = [pytest.mark.local, pytest.mark.timeout(120)]

MakeRun = Callable[..., LocalRun]
TOKENIZER, STREAM = "spec.data.tokenizer", "spec.data.streams"


def stream(remote: str) -> list[dict[str, str]]:
    return [{"name": "nano", "remote": remote}]


@pytest.fixture(scope="session")
def strange_places(nano_corpus: Mapping[str, str]) -> None:
    """Things in the bucket that are not what a job may think they are."""
    corpora = ObjectStore("s3://corpora", env=nano_corpus)
    corpora.put("foreign/index.json", b'{"shards": [], "version": 2}')  # MDS shards by somebody else's writer
    corpora.put("other/tokenizer.json", corpora.get("nano/tokenizer.json") + b"\n")


REFUSALS = [
    pytest.param(
        {"spec.checkpoint.destination": "s3://no-such-bucket"},
        "ConfigInvalid",
        ["bucket", "no-such-bucket"],
        id="the bucket for checkpoints does not exist",
    ),
    pytest.param(
        {STREAM: stream("s3://no-such-bucket/nano")},
        "DataError",
        ["bucket", "no-such-bucket"],
        id="the bucket with the data does not exist",
    ),
    pytest.param(
        {STREAM: stream("s3://corpora/nothing-here")},
        "DataError",
        ["s3://corpora/nothing-here", "steadfast data prepare"],
        id="there are no shards",
    ),
    pytest.param(
        {STREAM: stream("s3://corpora/foreign")},
        "DataError",
        ["s3://corpora/foreign", "steadfast data prepare"],
        id="the shards were not written by steadfast data prepare",
    ),
    pytest.param(
        {TOKENIZER: "s3://corpora/other/tokenizer.json"},
        "DataError",
        ["s3://corpora/other/tokenizer.json", "tokenizer"],
        id="the tokenizer is not the one that the shards were made with",
    ),
    pytest.param(
        {"spec.model.contextLength": 16},
        "DataError",
        ["32", "16", "--sequence-length 16"],
        id="the sequences are longer than the model's context",
    ),
]


@pytest.mark.parametrize(("overrides", "failure_class", "words"), REFUSALS)
@pytest.mark.usefixtures("strange_places")
def test_a_job_that_cannot_train_fails_at_its_first_attempt(
    local_run: MakeRun,
    nano_corpus: Mapping[str, str],
    overrides: dict[str, Any],
    failure_class: str,
    words: list[str],
) -> None:
    run = local_run(nano("refused", **{"spec.runName": f"refused-{failure_class}", **overrides}))
    assert run.finish() == 1, run.output
    status = run.job().status
    assert run.true_conditions()["Failed"] == "NotRetryable"
    assert status.attempt == 1
    assert status.last_failure is not None
    assert status.last_failure.class_ == failure_class
    for word in words:
        assert word in status.last_failure.evidence
    assert "Failed: NotRetryable" in run.output
    if failure_class == "DataError":  # the run was claimed before: the corrected job need not wait for its lease to die
        latest = ObjectStore("s3://runs/refused-DataError", env=nano_corpus).get(LATEST)
        assert Latest.from_json(latest).released


def test_wrong_credentials_are_refused_and_never_printed(local_run: MakeRun, nano_corpus: Mapping[str, str]) -> None:
    secret = "wrong-secret-that-nobody-may-see"
    run = local_run(nano("denied"), environ={**nano_corpus, "AWS_SECRET_ACCESS_KEY": secret})
    assert run.finish() == 1, run.output
    failure = run.job().status.last_failure
    assert failure is not None
    assert failure.class_ == "ConfigInvalid"
    assert "AWS_ACCESS_KEY_ID" in failure.evidence
    logs = [path.read_text() for path in run.folder.glob("workers/*/log")]
    assert all(secret not in text for text in [run.output, *logs])


def test_a_checkpoint_of_another_model_is_refused_and_left_alone(
    local_run: MakeRun, nano_corpus: Mapping[str, str]
) -> None:
    wide = local_run(nano("wide", **{"spec.runName": "shared", "spec.model.ffnHiddenSize": 96}))
    assert wide.finish() == 0, wide.output
    narrow = local_run(nano("narrow", **{"spec.runName": "shared"}))
    assert narrow.finish() == 1, narrow.output
    failure = narrow.job().status.last_failure
    assert failure is not None
    assert "model.ffn_hidden_size is 96 in the checkpoint and 64 here" in failure.evidence
    assert "runName" in failure.evidence
    _, kept = newest_checkpoint("s3://runs/shared", environ=nano_corpus)
    assert kept.model["ffn_hidden_size"] == 96

    afresh = local_run(nano("afresh", **{"spec.runName": "shared", "spec.checkpoint.resume": "never"}))
    assert afresh.finish() == 0, afresh.output
    assert afresh.job().status.attempts[0].resumed_from == 0


def test_a_second_live_job_on_the_same_run_is_refused_and_the_first_goes_on(local_run: MakeRun) -> None:
    first = local_run(nano("first", **{"spec.runName": "contested", "spec.train.steps": 800}))
    first.start()
    first.wait_for_steps(5)
    second = local_run(nano("second", **{"spec.runName": "contested"}))
    assert second.finish() == 1, second.output
    failure = second.job().status.last_failure
    assert failure is not None
    assert "in use by job default/first" in failure.evidence
    assert first.wait() == 0, first.output
    assert first.job().status.restarts.total == 0


def test_the_same_job_twice_on_one_machine_is_refused(local_run: MakeRun) -> None:
    first = local_run(nano("twice", **{"spec.train.steps": 5000}))
    first.start()
    first.wait_for_steps(1)
    second = local_run(nano("twice"))
    second.environ["STEADFAST_HOME"] = first.environ["STEADFAST_HOME"]
    assert second.finish() == 1
    assert first.process is not None
    assert f"job default/twice is already looked after by process {first.process.pid}" in second.output
    assert not first.ended
