"""Waiting for the definitions of our kinds, against an API server in memory that learns of them late."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from fakes.apiserver import DISCOVERY, OURS, FakeApiServer, Object, connected, serving
from steadfast_operator.shell.api_server import ApiServer, RefusedError
from steadfast_operator.shell.definitions import await_definitions

NAME = "trainingjobs.steadfast.dev"
SECONDS = 10.0
PATIENTLY = {"pause_seconds": 0.01}


@pytest.fixture
def fake() -> FakeApiServer:
    return FakeApiServer()


@pytest.fixture
async def server(fake: FakeApiServer) -> AsyncIterator[ApiServer]:
    async with serving(fake):
        client = connected(fake)
        yield client
        await client.close()


async def test_definitions_that_are_served_are_not_waited_for(
    server: ApiServer, caplog: pytest.LogCaptureFixture
) -> None:
    await asyncio.wait_for(await_definitions(server, [NAME], pause_seconds=SECONDS), SECONDS / 2)
    assert caplog.messages == []


@pytest.mark.parametrize("status", [404, 500, 503])
async def test_definitions_that_are_not_served_yet_are_waited_for(
    server: ApiServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    answer, refusals = server.call, iter(range(3))

    async def call(method: str, path: str) -> Object:
        if path == OURS and next(refusals, None) is not None:
            raise RefusedError(status, "not yet")
        return await answer(method, path)

    monkeypatch.setattr(server, "call", call)
    async with asyncio.timeout(SECONDS):
        await await_definitions(server, [NAME], **PATIENTLY)
    assert len(caplog.messages) == 1, "said once"


async def test_a_group_that_the_list_of_groups_lacks_is_waited_for(
    server: ApiServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(DISCOVERY["/apis"], "groups", [])
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(await_definitions(server, [NAME], **PATIENTLY), 0.2)
    assert f"{NAME} not served" in caplog.text


async def test_a_server_that_does_not_answer_is_asked_again(fake: FakeApiServer) -> None:
    fake.url = "http://127.0.0.1:9"
    client = connected(fake)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(await_definitions(client, [NAME], **PATIENTLY), 0.2)
    await client.close()
