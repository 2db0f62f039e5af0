"""The pod cache against an API server that breaks everything it never promised."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from fakes.apiserver import FakeApiServer, Object, connected, serving
from steadfast_operator.api import labels
from steadfast_operator.shell.api_server import ApiServer
from steadfast_operator.shell.pod_cache import PodCache

SECONDS = 10.0


@dataclass
class Setting:
    server: FakeApiServer
    api: ApiServer
    cache: PodCache
    changes: list[str]

    def names(self, job: str = "job-a") -> set[str]:
        return {pod["metadata"]["name"] for pod in self.cache.pods(job)}

    async def until(self, true: Callable[[], Any]) -> None:
        async with asyncio.timeout(SECONDS):
            while not true():  # noqa: ASYNC110
                await asyncio.sleep(0.005)

    async def until_names(self, *names: str) -> None:
        await self.until(lambda: self.names() == set(names))

    def lists(self) -> int:
        return self.server.requests.count("GET /api/v1/pods")


def a_pod(name: str, *, job: str | None = "job-a") -> Object:
    marked = {labels.JOB_UID: job} if job else {"app": "other"}
    return {"metadata": {"name": name, "namespace": "research", "labels": marked}, "spec": {}}


def key(name: str) -> tuple[str, str, str]:
    return ("pods", "research", name)


def delete(server: FakeApiServer, name: str) -> None:
    server.delete(key(name), {"gracePeriodSeconds": 0})


@asynccontextmanager
async def following(*pods: str, page: int = 500, watch_seconds: int = 30) -> AsyncIterator[Setting]:
    server, changes = FakeApiServer(), list[str]()
    for name in pods:
        server.add("pods", a_pod(name))
    async with serving(server):
        api = connected(server)
        cache = PodCache(api, on_change=changes.append, page=page, watch_seconds=watch_seconds, pause=lambda _: 0.01)
        task = asyncio.create_task(cache.run())
        async with asyncio.timeout(SECONDS):
            await cache.synced.wait()
        setting = Setting(server, api, cache, changes)
        await setting.until(lambda: server.watchers)
        yield setting
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await api.close()


async def test_what_is_there_is_listed_page_by_page() -> None:
    async with following(*(f"p{i}" for i in range(7)), page=3) as setting:
        assert setting.names() == {f"p{i}" for i in range(7)}
        assert setting.lists() == 4  # three pages and the watch
        assert len(setting.changes) == 7


async def test_changes_are_followed_and_told() -> None:
    async with following("p0") as setting:
        setting.changes.clear()
        setting.server.add("pods", a_pod("p1"))
        await setting.until_names("p0", "p1")
        delete(setting.server, "p0")
        await setting.until_names("p1")
        assert setting.changes == ["job-a", "job-a"]


async def test_jobs_do_not_mix_and_other_pods_are_not_read() -> None:
    async with following("p0") as setting:
        setting.server.add("pods", a_pod("p1", job="job-b"))
        setting.server.add("pods", a_pod("p2", job=None))
        setting.server.add("pods", a_pod("p3"))
        await setting.until_names("p0", "p3")
        assert setting.names("job-b") == {"p1"}
        assert setting.names("nobody") == set()


async def test_a_pod_deleted_while_no_watch_ran_is_forgotten() -> None:
    async with following("p0", "p1") as setting:
        setting.server.muted = True
        delete(setting.server, "p0")
        setting.server.muted = False
        setting.changes.clear()
        setting.server.drop_watches()
        await setting.until_names("p1")
        assert setting.changes == ["job-a"]


async def test_a_version_that_is_too_old_leads_to_a_new_list() -> None:
    async with following("p0", "p1", watch_seconds=1) as setting:
        setting.server.muted = True
        delete(setting.server, "p0")
        setting.server.add("pods", a_pod("p2"))
        setting.server.muted = False
        before = setting.lists()
        setting.server.compact()
        setting.server.drop_watches()
        await setting.until_names("p1", "p2")
        assert setting.lists() > before


async def test_a_page_that_has_expired_leads_to_a_new_list() -> None:
    server, pages = FakeApiServer(), list[str]()
    for number in range(4):
        server.add("pods", a_pod(f"p{number}"))

    def refuse(method: str, path: str) -> int | None:
        if "continue" in path and not pages:
            pages.append(path)
            return 410
        return None

    server.refuse = refuse
    async with serving(server):
        api = connected(server)
        cache = PodCache(api, on_change=lambda _: None, page=2, pause=lambda _: 0.01)
        task = asyncio.create_task(cache.run())
        async with asyncio.timeout(SECONDS):
            await cache.synced.wait()
        assert len(cache.pods("job-a")) == 4
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await api.close()


async def test_a_watch_that_ends_in_time_goes_on_where_it_was() -> None:
    async with following("p0", watch_seconds=1) as setting:
        lists = len([r for r in setting.server.requests if r == "GET /api/v1/pods"])
        await setting.until(lambda: setting.lists() > lists)  # the next watch
        setting.server.add("pods", a_pod("p1"))
        await setting.until_names("p0", "p1")


async def test_events_that_come_twice_or_late_change_nothing() -> None:
    async with following("p0") as setting:
        setting.server.add("pods", a_pod("p1"))
        delete(setting.server, "p1")
        await setting.until_names("p0")
        await setting.until(lambda: len(setting.changes) == 3)
        setting.changes.clear()
        setting.server.repeat("pods", 3)
        setting.server.add("pods", a_pod("p2"))
        await setting.until_names("p0", "p2")
        assert setting.changes == ["job-a"]


async def test_what_was_just_written_is_there_at_once_and_stays() -> None:
    async with following("p0") as setting:
        setting.server.muted = True
        created = setting.server.add("pods", a_pod("p1"))
        setting.cache.put(created)
        assert setting.names() == {"p0", "p1"}
        setting.server.muted = False
        setting.server.drop_watches()
        before = setting.lists()
        await setting.until(lambda: setting.lists() >= before + 2)
        assert setting.names() == {"p0", "p1"}


async def test_a_late_answer_to_a_write_brings_nothing_back() -> None:
    async with following("p0") as setting:
        created = setting.server.add("pods", a_pod("p1"))
        await setting.until_names("p0", "p1")
        delete(setting.server, "p1")
        await setting.until_names("p0")
        setting.cache.put(created)
        assert setting.names() == {"p0"}


@pytest.mark.parametrize("status", [403, 429, 500])
async def test_a_server_that_refuses_is_asked_again(status: int) -> None:
    async with following("p0") as setting:
        setting.server.refuse = lambda method, path: status
        setting.server.drop_watches()
        before = setting.lists()
        await setting.until(lambda: setting.lists() > before + 2)
        delete(setting.server, "p0")
        assert setting.names() == {"p0"}  # what was known is kept, until somebody knows better
        setting.server.refuse = lambda method, path: None
        await setting.until_names()


async def test_an_answer_that_is_nonsense_does_not_end_the_care() -> None:
    async with following("p0") as setting:
        broken = a_pod("p1")
        broken["metadata"]["resourceVersion"] = "nonsense"
        for _, queue in setting.server.watchers:
            event = setting.server.history[-1]
            queue.put_nowait(type(event)(event.version, "pods", "ADDED", broken))
        setting.server.add("pods", a_pod("p2"))
        await setting.until_names("p0", "p2")
