"""Last words: they always fit, and every end belongs to one class."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steadfast_contract.exits import (
    CLASS_OF_CODE,
    MAX_REPORT_BYTES,
    ExitCode,
    FailureClass,
    RankReport,
    describe_exit,
    failure_class,
)
from steadfast_contract.heartbeat import Pulse

MESSAGES = st.one_of(
    st.text(),
    st.builds(lambda text, times: text * times, st.text(min_size=1, max_size=20), st.integers(1, 3000)),
    st.sampled_from(["a" * 10_000, "\x00" * 4000, "😀" * 2000, "é\n" * 5000, "a" * 3000 + "😀" * 3000, '"\\' * 4000]),
)
BIG = st.integers(-(2**63), 2**63)


@given(MESSAGES, BIG, BIG, st.none() | BIG, st.none() | BIG)
def test_a_report_fits_and_says_the_same(message, code, attempt, rank, step):
    report = RankReport(code=code, attempt=attempt, rank=rank, step=step, message=message)
    text = report.to_json()
    assert len(text.encode()) <= MAX_REPORT_BYTES
    back = RankReport.from_json(text)
    assert (back.code, back.attempt, back.rank, back.step, back.reported) == (code, attempt, rank, step, True)
    if back.message != message:
        head, tail = back.message.split(" ... ", 1) if message.count(" ... ") == 0 else (message, "")
        assert message.startswith(head)
        assert message.endswith(tail)


@pytest.mark.parametrize(
    ("message", "kept"),
    [("a" * 9000, 3900), ("\n" * 9000, 1950), ("\x00" * 9000, 650), ("😀" * 9000, 325)],
    ids=["letters", "line ends", "control characters", "emoji"],
)
def test_a_long_message_loses_no_more_of_its_middle_than_it_must(message, kept):
    assert len(RankReport.from_json(RankReport(code=70, attempt=1, message=message).to_json()).message) > kept


def test_a_long_message_keeps_both_ends():
    message = RankReport.from_json(
        RankReport(code=70, attempt=1, message="Traceback" + "x" * 9000 + "ValueError: bad").to_json()
    ).message
    assert message.startswith("Traceback")
    assert message.endswith("ValueError: bad")


def test_a_report_carries_progress_and_drops_what_it_does_not_know():
    report = RankReport(code=0, attempt=1, progress=Pulse(step=7, loss=2.5))
    assert RankReport.from_json(report.to_json()) == report
    newer = report.to_json().replace('"step": 7', '"warp": 9, "step": 7')
    assert RankReport.from_json(newer) == report


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "7",
        "null",
        '"a"',
        "{}",
        '{"code": 1, "attempt": 1, "rank": 0, "step": 0, "message": "", "reported": true, "progress": 7}',
        '{"code": 1}',
        "{",
    ],
)
def test_what_is_no_report_is_refused(text):
    with pytest.raises(ValueError, match="not a rank report"):
        RankReport.from_json(text)


def test_fields_of_a_newer_version_are_dropped():
    report = RankReport(code=70, attempt=1)
    assert RankReport.from_json(json.dumps(json.loads(report.to_json()) | {"mood": "sad"})) == report


@pytest.mark.parametrize(
    ("code", "reported", "expected"),
    [
        pytest.param(0, True, None, id="done is no failure"),
        pytest.param(0, False, None, id="done without a report is no failure"),
        *(pytest.param(code, True, kind, id=f"reported {code.name}") for code, kind in CLASS_OF_CODE.items()),
        *(
            pytest.param(code, False, FailureClass.USER_ERROR, id=f"a user's program may exit {code} too")
            for code in range(64, 76)
        ),
        pytest.param(1, True, FailureClass.USER_ERROR, id="exit 1 with a report"),
        pytest.param(1, False, FailureClass.USER_ERROR, id="exit 1 without a report"),
        pytest.param(-9, False, FailureClass.UNKNOWN, id="SIGKILL"),
        pytest.param(-11, False, FailureClass.UNKNOWN, id="SIGSEGV"),
        pytest.param(137, False, FailureClass.UNKNOWN, id="SIGKILL as a container says it"),
        pytest.param(139, False, FailureClass.UNKNOWN, id="SIGSEGV as a container says it"),
        pytest.param(143, False, FailureClass.UNKNOWN, id="SIGTERM as a container says it"),
        pytest.param(255, False, FailureClass.USER_ERROR, id="exit -1"),
    ],
)
def test_class_of_an_end(code, reported, expected):
    assert failure_class(code, reported=reported) == expected


def test_every_exit_code_has_a_class():
    assert set(CLASS_OF_CODE) == set(ExitCode) - {ExitCode.DONE}


@given(st.integers(-64, 255), st.booleans())
def test_every_end_has_a_class_and_words(code, reported):
    assert (failure_class(code, reported=reported) is None) == (code == 0)
    assert describe_exit(code)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (0, "exit code 0 (DONE)"),
        (70, "exit code 70 (USER_ERROR)"),
        (1, "exit code 1"),
        (-9, "killed by SIGKILL"),
        (-40, "killed by signal 40"),
    ],
)
def test_an_end_in_words(code, words):
    assert describe_exit(code) == words


def test_exit_codes_and_classes_are_a_frozen_surface():
    assert {code.name: int(code) for code in ExitCode} == {
        **{"DONE": 0, "CONFIG": 64, "DATA": 65, "CHECKPOINT_UNREADABLE": 66, "USER_ERROR": 70, "NON_FINITE_LOSS": 71},
        **{"COLLECTIVE": 72, "GPU": 73, "STORAGE": 74, "SAVED": 75},
    }
