"""`steadfast data prepare`: documents to shards in a bucket, by the trainer's own program in a child process.

The command line and the trainer are strangers: nothing of the trainer is imported here. Without an object store in
the environment, the embedded one of this machine is used, as `steadfast run` does.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import click

from steadfast_cli.embedded_store import EmbeddedStoreError, acquire
from steadfast_cli.home import default_home

_STORE_NAMES = ("S3_ENDPOINT_URL", "AWS_ACCESS_KEY_ID")
_NEEDED = ("numpy", "obstore", "streaming", "tokenizers")


class _BucketUrl(click.ParamType[str]):
    name = "s3://bucket/prefix"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not re.fullmatch(r"s3://[^/]+/.*[^/]/?", value):
            self.fail(f"{value!r} is not s3://bucket/prefix", param, ctx)
        return value.rstrip("/")


class _TokenizerSpec(click.ParamType[str]):
    name = "train:SIZE|PATH|s3://..."

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if value.startswith("train:") and not re.fullmatch(r"train:[1-9]\d*", value):
            self.fail(f"{value!r} names no vocabulary size: write train:4096", param, ctx)
        if not value.startswith(("train:", "s3://")) and not Path(value).is_file():
            self.fail(f"there is no file {value!r}: name one, or write train:4096", param, ctx)
        return value


@click.group()
def data() -> None:
    """Training data."""


@data.command()
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE...")
@click.option("--out", required=True, type=_BucketUrl(), help="Where the shards go.")
@click.option("--tokenizer", required=True, type=_TokenizerSpec(), help="Train one, or use a tokenizer.json.")
@click.option("--sequence-length", required=True, type=click.IntRange(min=1), help="The model's context length.")
@click.option("--max-tokens", type=click.IntRange(min=1), help="Stop after so many tokens.")
@click.option("--overwrite", is_flag=True, help="Replace another stream at --out.")
@click.pass_context
def prepare(
    context: click.Context,
    *,
    sources: tuple[str, ...],
    out: str,
    tokenizer: str,
    sequence_length: int,
    max_tokens: int | None,
    overwrite: bool,
) -> None:
    """Turn documents into shards that a job can stream.

    SOURCE is a text file, a folder of them, python-stdlib or man-pages. The tokenizer is stored beside the shards.
    Preparing the same documents again changes nothing.
    """
    _check_installed()
    arguments = [f"--out={out}", f"--tokenizer={tokenizer}", f"--sequence-length={sequence_length}"]
    if max_tokens is not None:
        arguments.append(f"--max-tokens={max_tokens}")
    if overwrite:
        arguments.append("--overwrite")
    with _environment(bucket=out.split("/")[2]) as env:
        command = [sys.executable, "-m", "steadfast_trainer.data.prepare", *arguments, "--", *sources]
        code = subprocess.run(command, env=env, check=False).returncode
    context.exit(code if code >= 0 else 128 - code)


def _check_installed() -> None:
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise click.ClickException(f"{', '.join(missing)} not installed: pip install 'steadfast[trainer]'")


@contextmanager
def _environment(*, bucket: str) -> Iterator[Mapping[str, str]]:
    """The child's environment: ours, or ours with the embedded store's address and keys."""
    if any(name in os.environ for name in _STORE_NAMES):
        yield os.environ
        return
    try:
        store = acquire(default_home())
    except EmbeddedStoreError as error:
        raise click.ClickException(str(error)) from error
    try:
        store.ensure_bucket(bucket)
        yield {**os.environ, **store.environment}
    finally:
        store.release()
