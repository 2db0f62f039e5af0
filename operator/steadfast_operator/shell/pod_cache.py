"""Every pod that carries our label, kept current by list and watch: one cache for all jobs, keyed by the job's uid.

`kube.py` reads it and adds what it has just written. A list is compared with what is known, so that a pod deleted while
no watch ran is noticed; nothing rests on having seen every event.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import defaultdict, deque
from collections.abc import Callable

from steadfast_operator.api import labels
from steadfast_operator.shell.api_server import ApiServer, Object, RefusedError
from steadfast_operator.shell.ports import ClusterError

WATCH_SECONDS = 120
PAGE = 500
GONE = 410
DEPARTED = 1000
"""Bound on what is kept for jobs that nobody looks after any more."""

_log = logging.getLogger(__name__)


class PodCache:
    """The newest known state of every pod of ours."""

    def __init__(
        self,
        server: ApiServer,
        *,
        on_change: Callable[[str], None],
        namespace: str | None = None,
        page: int = PAGE,
        watch_seconds: int = WATCH_SECONDS,
        pause: Callable[[int], float] = lambda failures: random.uniform(0.5, 1) * min(0.2 * 2 ** min(failures, 8), 30),
    ) -> None:
        """`on_change` gets a job's uid; `pause` is the seconds before the next try, by failures in a row."""
        self.synced = asyncio.Event()
        """Everything was listed once."""
        self._server, self._on_change, self._page = server, on_change, page
        self._watch_seconds, self._pause = watch_seconds, pause
        self._path = f"/api/v1/namespaces/{namespace}/pods" if namespace else "/api/v1/pods"
        self._pods: dict[str, dict[str, Object]] = defaultdict(dict)
        """Pods by their uid, by their job's uid."""
        self._departed: deque[Object] = deque(maxlen=DEPARTED)
        """Pods that have ended and were deleted, as they were last."""
        self._failures = 0
        """Lists and watches in a row that brought nothing."""
        self._version = 0
        """Everything up to this resourceVersion is known."""

    def pods(self, job_uid: str) -> tuple[Object, ...]:
        """The pods of one job."""
        return tuple(self._pods[job_uid].values()) if job_uid in self._pods else ()

    def take_departed(self, job_uid: str) -> tuple[Object, ...]:
        """Pods of one job that have ended and were deleted since this was asked last: their last words are in them."""
        taken = tuple(pod for pod in self._departed if _job(pod) == job_uid)
        for pod in taken:
            self._departed.remove(pod)
        return taken

    def others(self, job_uid: str, *, namespace: str, name: str) -> tuple[Object, ...]:
        """Pods of other jobs of this name: one that was deleted may still be ending."""
        found = (pods for uid, pods in self._pods.items() if uid != job_uid)
        return tuple(pod for pods in found if _is_named(pods, namespace=namespace, name=name) for pod in pods.values())

    def put(self, pod: Object) -> None:
        """Add the answer to a write of ours, unless the watch has already told as much or more."""
        if _version(pod) > self._version:
            self._keep(pod)

    def discard(self, pod: Object) -> None:
        """The API server has said that this pod does not exist."""
        self._drop(pod)

    async def run(self) -> None:
        """Keep the cache current until cancelled."""
        while True:
            try:
                await self._list()
                while True:
                    await self._watch()
            except RefusedError as error:
                if error.status != GONE:
                    _log.warning("Failed to follow the pods, retrying: error=%r", str(error))
                    self._failures += 1
            except ClusterError as error:  # a broken connection is nothing unusual
                _log.info("Lost the watch on the pods, listing anew: error=%r", str(error))
                self._failures += 1
            except Exception as error:  # without pods no job can be looked after: never give up
                _log.warning("Failed to follow the pods, retrying: error=%r", str(error), exc_info=error)
                self._failures += 1
            await asyncio.sleep(self._pause(self._failures))

    async def _list(self) -> None:
        """Read every pod, page by page, and forget those that are no longer there."""
        query = {"labelSelector": labels.JOB_UID, "limit": str(self._page)}
        found: list[Object] = []
        while True:
            answer = await self._server.call("GET", self._path, query=query)
            found += answer.get("items") or []
            token = answer["metadata"].get("continue")
            if not token:
                break
            query["continue"] = token
        version = int(answer["metadata"]["resourceVersion"])
        here = {_uid(pod) for pod in found}
        for pod in [pod for pods in self._pods.values() for pod in pods.values()]:
            # What we created after the list was taken cannot be in it.
            if _uid(pod) not in here and _version(pod) <= version:
                self._drop(pod)
        self._version = version
        for pod in found:
            self._keep(pod)
        self.synced.set()

    async def _watch(self) -> None:
        """Follow the changes until the server ends the watch; the next one continues where it was."""
        query = {"labelSelector": labels.JOB_UID, "resourceVersion": str(self._version)}
        async for event in self._server.watch(self._path, query=query, seconds=self._watch_seconds):
            pod, self._failures = event["object"], 0
            # Never backwards: an event that is delivered again says nothing new.
            if _version(pod) <= self._version:
                continue
            if event["type"] == "DELETED":
                if pod.get("status", {}).get("phase") in ("Succeeded", "Failed"):
                    self._departed.append(pod)
                self._drop(pod)
            elif event["type"] != "BOOKMARK":
                self._keep(pod)
            self._version = _version(pod)

    def _keep(self, pod: Object) -> None:
        known = self._pods[_job(pod)].get(_uid(pod))
        if known is None or _version(pod) > _version(known):
            self._pods[_job(pod)][_uid(pod)] = pod
            self._on_change(_job(pod))

    def _drop(self, pod: Object) -> None:
        pods = self._pods[_job(pod)]
        dropped = pods.pop(_uid(pod), None)
        if not pods:
            del self._pods[_job(pod)]
        if dropped is not None:
            self._on_change(_job(pod))


def _is_named(pods: dict[str, Object], *, namespace: str, name: str) -> bool:
    """By any of a job's pods: they have these in common."""
    meta = next(iter(pods.values()))["metadata"]
    return (meta["namespace"], meta["labels"].get(labels.JOB_NAME)) == (namespace, name)


def _uid(pod: Object) -> str:
    return str(pod["metadata"]["uid"])


def _job(pod: Object) -> str:
    return str(pod["metadata"]["labels"][labels.JOB_UID])


def _version(pod: Object) -> int:
    # Kubernetes promises since 1.35 that versions of one kind are numbers in their order.
    return int(pod["metadata"]["resourceVersion"])
