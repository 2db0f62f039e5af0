"""`steadfast data prepare`: wrong arguments are refused before a child or a server starts."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from steadfast_cli import data

GOOD = ["--out=s3://corpora/x", "--tokenizer=train:512", "--sequence-length=32", "--", "src", "-odd"]
OUTSIDE = {"S3_ENDPOINT_URL": "http://s3.example"}


class Child:
    """Stands in for the child process: remembers how it was started."""

    def __init__(self, code=0):
        self.code = code
        self.calls = []

    def __call__(self, command, *, env, check):
        self.calls.append((command, dict(env)))
        return SimpleNamespace(returncode=self.code)


class Store:
    """Stands in for the embedded store: remembers what was asked of it."""

    environment = {"S3_ENDPOINT_URL": "http://127.0.0.1:1", "AWS_ACCESS_KEY_ID": "embedded"}  # noqa: RUF012

    def __init__(self):
        self.log = []

    def ensure_bucket(self, name):
        self.log.append(f"ensure {name}")

    def release(self):
        self.log.append("release")


@pytest.fixture
def start(monkeypatch):
    """Run the command with a child that exits with `code`."""

    def start(*arguments, code=0, env=OUTSIDE):
        child, store = Child(code), Store()
        monkeypatch.setattr(subprocess, "run", child)
        monkeypatch.setattr(data, "acquire", lambda home: store)
        names = dict.fromkeys(("S3_ENDPOINT_URL", "AWS_ACCESS_KEY_ID"))
        result = CliRunner().invoke(data.data, ["prepare", *arguments], env=names | env)
        return result, child.calls, store.log

    return start


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Missing argument 'SOURCE...'"),
        (["src"], "Missing option '--out'"),
        ([*GOOD[1:], "--out=/tmp/x"], "Missing option '--out'"),
        (["--out=/tmp/x", *GOOD[1:]], "'/tmp/x' is not s3://bucket/prefix"),
        (["--out=s3://bucket", *GOOD[1:]], "'s3://bucket' is not s3://bucket/prefix"),
        (["--tokenizer=train:many", *GOOD[:1], *GOOD[2:]], "'train:many' names no vocabulary size"),
        (["--tokenizer=nowhere.json", *GOOD[:1], *GOOD[2:]], "there is no file 'nowhere.json'"),
        (["--sequence-length=0", *GOOD[:2], *GOOD[3:]], "0 is not in the range x>=1"),
        (["--max-tokens=0", *GOOD], "0 is not in the range x>=1"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_starts(start, arguments, message):
    result, calls, log = start(*arguments)
    assert result.exit_code == 2
    assert message in result.output
    assert (calls, log) == ([], [])


def test_the_trainer_gets_the_arguments_and_the_environment(start):
    result, [(command, env)], log = start("--max-tokens=100", "--overwrite", *GOOD)
    assert result.exit_code == 0
    assert command[:3] == [sys.executable, "-m", "steadfast_trainer.data.prepare"]
    assert sorted(command[3:-3]) == [
        "--max-tokens=100",
        "--out=s3://corpora/x",
        "--overwrite",
        "--sequence-length=32",
        "--tokenizer=train:512",
    ]
    assert command[-3:] == ["--", "src", "-odd"]
    assert env["S3_ENDPOINT_URL"] == "http://s3.example"
    assert log == []


def test_without_a_store_in_the_environment_the_embedded_one_is_used_and_released(start):
    result, [(_, env)], log = start(*GOOD, env={}, code=65)
    assert env["AWS_ACCESS_KEY_ID"] == "embedded"
    assert log == ["ensure corpora", "release"]
    assert result.exit_code == 65


@pytest.mark.parametrize(("code", "seen"), [(0, 0), (64, 64), (74, 74), (-9, 137)])
def test_the_childs_end_is_ours(start, code, seen):
    assert start(*GOOD, code=code)[0].exit_code == seen


def test_missing_packages_are_named(start, monkeypatch):
    monkeypatch.setattr(data, "_NEEDED", ("no_such_package",))
    result, calls, _ = start(*GOOD)
    assert result.exit_code == 1
    assert "no_such_package not installed: pip install 'steadfast[trainer]'" in result.output
    assert calls == []


def test_a_store_that_does_not_start_is_explained(start, monkeypatch):
    def refuse(home):
        raise data.EmbeddedStoreError("the disk is nearly full")

    child = Child()
    monkeypatch.setattr(subprocess, "run", child)
    monkeypatch.setattr(data, "acquire", refuse)
    names = dict.fromkeys(("S3_ENDPOINT_URL", "AWS_ACCESS_KEY_ID"))
    result = CliRunner().invoke(data.data, ["prepare", *GOOD], env=names)
    assert result.exit_code == 1
    assert "Error: the disk is nearly full" in result.output
    assert child.calls == []
