"""Fixtures that every test may use."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from steadfast_cli.embedded_store import EmbeddedStore


@pytest.fixture(scope="session")
def embedded_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedStore]:
    """A real S3 server of this test session, with the buckets `corpora` and `runs`; use a prefix of your own."""
    with EmbeddedStore.acquire(tmp_path_factory.mktemp("home")) as store:
        store.ensure_bucket("corpora")
        store.ensure_bucket("runs")
        yield store


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--update-golden`: write golden files instead of comparing with them."""
    parser.addoption("--update-golden", action="store_true", help="accept what golden files are compared with")
