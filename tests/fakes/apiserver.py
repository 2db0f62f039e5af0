"""An API server over real HTTP, in memory: versions, preconditions, watches, pages, owners. Enough of one to be strict.

It keeps the promises that the operator rests on (one counter of versions, names collide, a stale write is refused, a
deletion is graceful, children go with their owner) and can be made to break what it never promised: watches end, events
get lost or come twice, history is forgotten.
"""

from __future__ import annotations

import asyncio
import copy
import json
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from aiohttp import web
from kubernetes.aio import client

from steadfast_operator.shell.api_server import ApiServer

Object = dict[str, Any]
Key = tuple[str, str, str]
"""Plural, namespace, name; what belongs to the cluster has no namespace."""

CORE, OURS, NETWORK = "/api/v1", "/apis/steadfast.dev/v1alpha1", "/apis/networking.k8s.io/v1"
KINDS = {
    "pods": (CORE, "Pod"),
    "configmaps": (CORE, "ConfigMap"),
    "events": (CORE, "Event"),
    "trainingjobs": (OURS, "TrainingJob"),
    "clustertrainingprofiles": (OURS, "ClusterTrainingProfile"),
    "networkpolicies": (NETWORK, "NetworkPolicy"),
}
WITH_STATUS = ("pods", "trainingjobs")
CLUSTER_SCOPED = ("clustertrainingprofiles",)


class Refused(Exception):
    """An answer with an error status."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message


@dataclass
class Event:
    """One change."""

    version: int
    plural: str
    type: str
    object: Object


@dataclass
class FakeApiServer:
    """The store and its HTTP face."""

    objects: dict[Key, Object] = field(default_factory=dict)
    version: int = 100
    history: list[Event] = field(default_factory=list)
    compacted: int = 0
    """Versions up to this one are forgotten."""
    requests: list[str] = field(default_factory=list)
    refuse: Callable[[str, str], int | None] = lambda method, path: None
    """Gives a status to refuse a request with."""
    on_change: list[Callable[[Event], None]] = field(default_factory=list)
    muted: bool = False
    """Watches hear nothing of changes."""
    watchers: list[tuple[str, asyncio.Queue[Event | None]]] = field(default_factory=list)
    url: str = ""

    # What a test does to it.

    def add(self, plural: str, content: Object) -> Object:
        """Create an object that keeps the uid and time that it has."""
        namespace = "" if plural in CLUSTER_SCOPED else content["metadata"].get("namespace", "default")
        return self.create(plural, namespace, content)

    def find(self, plural: str) -> list[Object]:
        """All objects of a kind, by name."""
        return [self.objects[key] for key in sorted(self.objects) if key[0] == plural]

    def edit(self, key: Key, **spec: Any) -> None:
        """What `kubectl patch` does to a spec."""
        content = copy.deepcopy(self.objects[key])
        content["spec"] |= spec
        self.replace(key, content)

    def drop_watches(self) -> None:
        """Every watch's connection ends."""
        for _, queue in self.watchers:
            queue.put_nowait(None)

    def compact(self) -> None:
        """Forget the history: whoever wants to go on from an older version is told 410."""
        self.compacted = self.version

    def repeat(self, plural: str, count: int = 1) -> None:
        """Deliver the last events of a kind again."""
        events = [event for event in self.history if event.plural == plural][-count:]
        for watched, queue in self.watchers:
            for event in events if watched == plural else ():
                queue.put_nowait(event)

    # The store.

    def create(self, plural: str, namespace: str, content: Object) -> Object:
        content = copy.deepcopy(content)
        meta = content["metadata"]
        if (plural in CLUSTER_SCOPED) == bool(namespace):
            raise Refused(404, f"{plural} are not looked for there")
        if namespace and meta.setdefault("namespace", namespace) != namespace:
            raise Refused(400, "the namespace of the object does not match the request's")
        if (plural, namespace, meta["name"]) in self.objects:
            raise Refused(409, f'{plural} "{meta["name"]}" already exists')
        if meta.pop("resourceVersion", None) is not None:
            raise Refused(400, "resourceVersion should not be set on objects to be created")
        meta.setdefault("uid", str(uuid.uuid4()))
        meta.setdefault("creationTimestamp", stamp(datetime.now(UTC)))
        meta["generation"] = 1
        if plural == "pods":
            content["status"] = {"phase": "Pending"}
        created = self._store((plural, namespace, meta["name"]), content, "ADDED")
        owners = {owner["uid"] for owner in meta.get("ownerReferences", [])}
        if owners and not owners & {o["metadata"]["uid"] for o in self.objects.values()}:
            self.delete((plural, namespace, meta["name"]), {})  # what the garbage collector does
        return created

    def replace(self, key: Key, content: Object, *, status: bool = False) -> Object:
        stored = self._get(key)
        wanted = content["metadata"].get("resourceVersion")
        if wanted is not None and wanted != stored["metadata"]["resourceVersion"]:
            raise Refused(409, "the object has been modified; please apply your changes to the latest version")
        if content["metadata"].get("uid", stored["metadata"]["uid"]) != stored["metadata"]["uid"]:
            raise Refused(409, "Precondition failed: UID in precondition does not match")
        if stored.get("immutable") and content.get("data") != stored.get("data"):
            raise Refused(422, "field is immutable when `immutable` is set")
        new = copy.deepcopy(stored)
        if status:
            new["status"] = copy.deepcopy(content.get("status", {}))
        else:
            kept = stored["metadata"]
            system = ("uid", "creationTimestamp", "generation", "deletionTimestamp")
            new = copy.deepcopy(content)
            new["metadata"] |= {name: kept[name] for name in system if name in kept}
            if key[0] in WITH_STATUS and "status" in stored:
                new["status"] = stored["status"]
            if new.get("spec") != stored.get("spec"):
                new["metadata"]["generation"] += 1
        new["metadata"]["resourceVersion"] = stored["metadata"]["resourceVersion"]
        if new == stored:
            return stored
        return self._store(key, new, "MODIFIED")

    def delete(self, key: Key, options: Object) -> Object:
        stored = self._get(key)
        meta = stored["metadata"]
        if options.get("preconditions", {}).get("uid", meta["uid"]) != meta["uid"]:
            raise Refused(409, "Precondition failed: UID in precondition does not match")
        grace = options.get("gracePeriodSeconds", stored.get("spec", {}).get("terminationGracePeriodSeconds", 0))
        if key[0] == "pods" and grace and stored["status"]["phase"] in ("Pending", "Running"):
            if grace >= meta.get("deletionGracePeriodSeconds", 10**9):
                return stored
            new = copy.deepcopy(stored)
            new["metadata"] |= {
                "deletionTimestamp": stamp(datetime.now(UTC) + timedelta(seconds=grace)),
                "deletionGracePeriodSeconds": grace,
            }
            return self._store(key, new, "MODIFIED")
        if meta.get("finalizers"):
            new = copy.deepcopy(stored)
            new["metadata"]["deletionTimestamp"] = stamp(datetime.now(UTC))
            return self._store(key, new, "MODIFIED")
        gone = self._store(key, stored, "DELETED")
        for other, content in list(self.objects.items()):
            owners = content["metadata"].get("ownerReferences", [])
            if any(owner["uid"] == meta["uid"] for owner in owners):
                self.delete(other, {})
        return gone

    def _get(self, key: Key) -> Object:
        if key not in self.objects:
            raise Refused(404, f'{key[0]} "{key[2]}" not found')
        return self.objects[key]

    def _store(self, key: Key, content: Object, kind: str) -> Object:
        self.version += 1
        content = copy.deepcopy(content)
        content["metadata"]["resourceVersion"] = str(self.version)
        base, name = KINDS[key[0]]
        content |= {"kind": name, "apiVersion": base.removeprefix("/api/").removeprefix("/apis/")}
        if kind == "DELETED":
            del self.objects[key]
        else:
            self.objects[key] = content
        event = Event(self.version, key[0], kind, content)
        self.history.append(event)
        for plural, queue in self.watchers if not self.muted else ():
            if plural == key[0]:
                queue.put_nowait(event)
        for callback in self.on_change:
            callback(event)
        return content

    # HTTP.

    def app(self) -> web.Application:
        app = web.Application()
        for path, answer in DISCOVERY.items():
            app.router.add_get(path, _constant(answer))
        for base in (CORE, OURS, NETWORK):
            app.router.add_get(base + "/{plural}", self._answer)
            app.router.add_get(base + "/{plural}/{name}", self._answer)
            app.router.add_route("*", base + "/namespaces/{namespace}/{plural}", self._answer)
            app.router.add_route("*", base + "/namespaces/{namespace}/{plural}/{name}", self._answer)
            app.router.add_route("*", base + "/namespaces/{namespace}/{plural}/{name}/{sub}", self._answer)
        return app

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(f"{request.method} {request.path}")
        try:
            if code := self.refuse(request.method, request.path_qs):
                raise Refused(code, "scripted")
            if "watch" in request.query:
                return await self._watch(request)
            return web.json_response(await self._dispatch(request))
        except Refused as refusal:
            return web.json_response(_status(refusal.code, refusal.message), status=refusal.code)

    async def _dispatch(self, request: web.Request) -> Object:
        plural, namespace = request.match_info["plural"], request.match_info.get("namespace", "")
        if plural not in KINDS or not request.path.startswith(KINDS[plural][0] + "/"):
            raise Refused(404, f"the server could not find the requested resource {plural}")
        body = await request.json() if request.can_read_body else {}
        if "name" not in request.match_info:
            if request.method == "POST":
                return self.create(plural, namespace, body)
            return self._list(request, plural=plural, namespace=namespace)
        key, status = (plural, namespace, request.match_info["name"]), request.match_info.get("sub") == "status"
        match request.method:
            case "GET":
                return self._get(key)
            case "PUT":
                return self.replace(key, body, status=status)
            case "PATCH":
                assert request.content_type == "application/merge-patch+json"
                return self.replace(key, _merged(self._get(key), body), status=status)
            case "DELETE":
                return self.delete(key, body)
        raise Refused(405, "not allowed")

    def _list(self, request: web.Request, *, plural: str, namespace: str) -> Object:
        version, start = self.version, 0
        if token := request.query.get("continue"):
            version, start = (int(part) for part in token.split("-"))
            if version <= self.compacted:
                raise Refused(410, "The provided continue parameter is too old")
        objects = self._as_of(version, plural)
        items = [o for o in objects if _selected(o, request.query.get("labelSelector", ""), namespace)]
        limit = int(request.query.get("limit", "0")) or len(items)
        more = start + limit < len(items)
        meta = {"resourceVersion": str(version)} | ({"continue": f"{version}-{start + limit}"} if more else {})
        return {"kind": f"{KINDS[plural][1]}List", "metadata": meta, "items": items[start : start + limit]}

    def _as_of(self, version: int, plural: str) -> list[Object]:
        """Objects as they were: a list that is read in pages shows one moment."""
        found: dict[str, Object] = {}
        for event in self.history:
            if event.plural == plural and event.version <= version:
                found.pop(event.object["metadata"]["uid"], None)
                if event.type != "DELETED":
                    found[event.object["metadata"]["uid"]] = event.object
        return list(found.values())

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        plural, namespace = request.match_info["plural"], request.match_info.get("namespace", "")
        since, selector = int(request.query.get("resourceVersion") or "0"), request.query.get("labelSelector", "")
        response = web.StreamResponse()
        response.content_type = "application/json"
        await response.prepare(request)
        if since < self.compacted:
            await response.write(_line("ERROR", _status(410, "too old resource version")))
            return response
        queue: asyncio.Queue[Event | None] = asyncio.Queue()
        for event in self.history if since else ():
            if event.plural == plural and event.version > since:
                queue.put_nowait(event)
        entry = (plural, queue)
        self.watchers.append(entry)
        try:
            async with asyncio.timeout(float(request.query.get("timeoutSeconds", "60"))):
                while (event := await queue.get()) is not None:
                    if _selected(event.object, selector, namespace):
                        await response.write(_line(event.type, event.object))
                if request.transport is not None:
                    request.transport.abort()
        except TimeoutError:
            bookmark = {"kind": KINDS[plural][1], "metadata": {"resourceVersion": str(self.version)}}
            await response.write(_line("BOOKMARK", bookmark))
        except ConnectionError:
            pass
        finally:
            self.watchers.remove(entry)
        return response


@asynccontextmanager
async def serving(server: FakeApiServer) -> AsyncIterator[str]:
    """The server at a URL of its own."""
    runner = web.AppRunner(server.app(), access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield server.url
    finally:
        server.drop_watches()
        await runner.cleanup()


def connected(server: FakeApiServer, *, request_seconds: float = 5.0) -> ApiServer:
    """Our client, with the fake's address."""
    configuration = client.Configuration(host=server.url)
    return ApiServer(client.ApiClient(configuration), request_seconds=request_seconds)


def stamp(at: datetime) -> str:
    """As the API server writes times: whole seconds."""
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")


def _merged(stored: Object, patch: Object) -> Object:
    result = copy.deepcopy(stored)
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        elif isinstance(value, dict) and isinstance(result.get(name), dict):
            result[name] = _merged(result[name], value)
        else:
            result[name] = value
    return result


def _selected(content: Object, selector: str, namespace: str) -> bool:
    meta = content["metadata"]
    key, _, value = selector.partition("=")
    found = meta.get("labels", {}).get(key)
    return (not namespace or meta.get("namespace") == namespace) and (
        not selector or (found is not None and value in ("", found))
    )


def _line(kind: str, content: Object) -> bytes:
    return json.dumps({"type": kind, "object": content}).encode() + b"\n"


def _status(code: int, message: str) -> Object:
    return {"kind": "Status", "status": "Failure", "code": code, "message": message}


def _constant(answer: Object) -> Callable[[web.Request], Any]:
    async def handle(_: web.Request) -> web.Response:
        return web.json_response(answer)

    return handle


_VERBS = ["create", "delete", "get", "list", "patch", "update", "watch"]


def _resources(**kinds: str) -> Object:
    return {
        "resources": [
            {
                "name": name,
                "kind": kind,
                "singularName": kind.lower(),
                "namespaced": name not in CLUSTER_SCOPED,
                "verbs": _VERBS,
            }
            for name, kind in kinds.items()
        ]
    }


def _group(name: str, version: str) -> Object:
    served = {"version": version, "groupVersion": f"{name}/{version}"}
    return {"name": name, "versions": [served], "preferredVersion": served}


DISCOVERY: dict[str, Object] = {
    "/api": {"versions": ["v1"]},
    "/apis": {"groups": [_group("steadfast.dev", "v1alpha1"), _group("apiextensions.k8s.io", "v1")]},
    CORE: _resources(pods="Pod", configmaps="ConfigMap", events="Event", namespaces="Namespace"),
    OURS: _resources(
        trainingjobs="TrainingJob",
        clustertrainingprofiles="ClusterTrainingProfile",
        **{"trainingjobs/status": "TrainingJob"},
    ),
    "/apis/apiextensions.k8s.io/v1": _resources(customresourcedefinitions="CustomResourceDefinition"),
}
"""What a server says about itself; kopf asks."""
