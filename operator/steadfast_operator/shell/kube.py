"""The cluster port on Kubernetes: one job, its profile, its pods, its records, its events.

Pods come from the cache, everything else is read from the API server when it is needed. What only agents know (who has
answered, how far training is) is remembered here, as long as the operator lives.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from urllib.parse import quote

from pydantic import ValidationError

from steadfast_contract.env import WorkerEnv
from steadfast_contract.heartbeat import AgentStatus, Pulse
from steadfast_operator.api import labels
from steadfast_operator.api.crd import GROUP, PLURAL, PROFILES, VERSION
from steadfast_operator.api.profile import ClusterTrainingProfile
from steadfast_operator.api.resolve import training_config
from steadfast_operator.api.types import API_VERSION, KIND, TrainingJob, TrainingJobStatus
from steadfast_operator.core import attempts
from steadfast_operator.core.actions import CreateWorker, EmitEvent
from steadfast_operator.core.network import Callers, build_network_policy
from steadfast_operator.core.observation import AttemptRecord, Worker, WorkerPhase
from steadfast_operator.core.pods import build_worker_pod, child_labels, owner_reference
from steadfast_operator.shell.agents import Agents
from steadfast_operator.shell.api_server import ApiServer, Object, RefusedError
from steadfast_operator.shell.pod_cache import PodCache
from steadfast_operator.shell.pod_status import worker_of
from steadfast_operator.shell.ports import ClusterError, ConflictError

LEAST_GRACE_SECONDS = 1
"""With 0 the API server forgets a pod whose processes still run."""
SILENT_SECONDS = 5.0
"""A terminating worker whose agent has said nothing for so long is not saving any more."""
EVENT_MESSAGE = 1024

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class JobKey:
    """Which job: another one of the same name is not it."""

    namespace: str
    name: str
    uid: str

    @property
    def path(self) -> str:
        """The resource."""
        return f"/apis/{GROUP}/{VERSION}/namespaces/{quote(self.namespace)}/{PLURAL}/{quote(self.name)}"


@dataclass(frozen=True)
class _Told:
    """What an agent has said about itself."""

    master: str = ""
    progress: Pulse | None = None
    at: float = 0.0
    """Monotonic time of its newest answer."""


class KubeCluster:
    """Implements `ports.Cluster` for one job."""

    def __init__(
        self,
        key: JobKey,
        *,
        server: ApiServer,
        pods: PodCache,
        agents: Agents,
        callers: Callers | None = None,
        grace_seconds: int = 60,
    ) -> None:
        """`grace_seconds` is what pods are given to save in when others end them."""
        self.key, self._server, self._pods, self._agents = key, server, pods, agents
        self._callers, self._grace_seconds = callers or Callers(), grace_seconds
        self._profile: ClusterTrainingProfile | None = None
        self._fetched: tuple[TrainingJob, Object] | None = None
        self._records: dict[int, AttemptRecord] = {}
        self._told: dict[str, _Told] = {}
        """By pod uid; who is in here has answered."""

    async def fetch_job(self) -> TrainingJob | None:
        """The job as the API server's quorum holds it; None when it is gone, or another one has its name."""
        try:
            content = await self._server.call("GET", self.key.path)
        except RefusedError as error:
            if error.status == 404:
                return None
            raise
        if content["metadata"]["uid"] != self.key.uid:
            return None
        try:
            job = TrainingJob.model_validate(content)
        except ValidationError as error:
            raise ClusterError(f"job {self.key.namespace}/{self.key.name} cannot be read: {error}") from error
        self._fetched = job, content
        return job

    async def list_workers(self) -> tuple[Worker, ...]:
        """Every pod of the job as a worker; those whose agents have something new to say are asked."""
        if not self._pods.synced.is_set():
            raise ClusterError("the pods have not been listed yet")
        pods = self._mine()
        self._told = {uid: told for uid, told in self._told.items() if uid in {p["metadata"]["uid"] for p in pods}}
        await asyncio.gather(*(self._ask(pod) for pod in pods if self._is_worth_asking(pod)))
        pods = self._mine()  # an end that came meanwhile says more than an answer
        departed = [pod for pod in self._pods.take_departed(self.key.uid) if self._owns(pod)]
        return tuple(self._worker(pod) for pod in [*pods, *departed]) + self._predecessors()

    async def fetch_profile(self, name: str) -> ClusterTrainingProfile | None:
        """The profile as the API server's quorum holds it."""
        self._profile = None
        try:
            content = await self._server.call("GET", f"/apis/{GROUP}/{VERSION}/{PROFILES}/{quote(name)}")
            self._profile = ClusterTrainingProfile.model_validate(content)
        except RefusedError as error:
            if error.status != 404:
                raise
        except ValidationError as error:
            raise ClusterError(f"profile {name} cannot be read: {error}") from error
        return self._profile

    async def fetch_record(self, number: int) -> AttemptRecord | None:
        """The record of one attempt; it never changes, so it is read once."""
        if number in self._records:
            return self._records[number]
        try:
            content = await self._server.call("GET", f"{self._records_path}/{self._record_name(number)}")
        except RefusedError as error:
            if error.status == 404:
                return None
            raise
        owners = content["metadata"].get("ownerReferences") or []
        if not any(owner["uid"] == self.key.uid for owner in owners):
            raise ClusterError(f"config map {content['metadata']['name']} is not this job's record")
        self._records = {number: AttemptRecord.from_json(content["data"]["record"])}
        return self._records[number]

    async def create_record(self, record: AttemptRecord) -> bool:
        """Create the record's config map, and forget the record that is too old now."""
        manifest = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {
                "name": self._record_name(record.number),
                "namespace": self.key.namespace,
                "labels": child_labels(job=self.key.name, uid=self.key.uid) | {labels.ATTEMPT: str(record.number)},
                "ownerReferences": [owner_reference(job=self.key.name, uid=self.key.uid)],
            },
            "immutable": True,
            "data": {"record": record.to_json()},
        }
        created = await self._create(self._records_path, manifest)
        if created is not None:
            self._records = {record.number: record}
        if created is not None and record.number > attempts.HISTORY:
            old = self._record_name(record.number - attempts.HISTORY)
            await self._delete(f"{self._records_path}/{old}", {})
        return created is not None

    async def isolate_workers(self, job: TrainingJob) -> None:
        """Create the job's NetworkPolicy. One that exists stays as it is, like the pods that it was made for."""
        path = f"/apis/networking.k8s.io/v1/namespaces/{quote(self.key.namespace)}/networkpolicies"
        await self._create(path, build_network_policy(job, self._callers))

    async def create_worker(self, job: TrainingJob, action: CreateWorker) -> bool:
        """Create the worker's pod."""
        profile, name = self._profile, job.spec.profile
        if profile is None or profile.metadata.name != name:
            raise ClusterError(f"profile {name} was not fetched")
        training, grace_seconds = training_config(job).to_json(), self._grace_seconds
        pod = build_worker_pod(job, action, profile=profile, training=training, grace_seconds=grace_seconds)
        created = await self._create(self._pods_path, pod)
        if created is not None:
            self._pods.put(created)
        return created is not None

    async def delete_workers(self, names: tuple[str, ...], grace_seconds: int) -> None:
        """Delete pods; their kubelets end them."""
        pods = [pod for pod in self._mine() if pod["metadata"]["name"] in names]
        await asyncio.gather(*(self._delete_pod(pod, grace_seconds) for pod in pods))

    async def write_status(self, job: TrainingJob, status: TrainingJobStatus) -> None:
        """Replace the status of exactly the job that was fetched last."""
        if self._fetched is None or self._fetched[0] != job:
            raise ConflictError(f"job {self.key.namespace}/{self.key.name} was fetched again since")
        written = status.model_dump(mode="json", by_alias=True, exclude_none=True)
        content = {**self._fetched[1], "status": written}  # its resourceVersion is the precondition
        try:
            await self._server.call("PUT", f"{self.key.path}/status", body=content)
        except RefusedError as error:
            if error.status in (404, 409):
                raise ConflictError(str(error)) from error
            raise

    async def emit_event(self, job: TrainingJob, event: EmitEvent) -> None:
        """One event per job, reason and type, counted. Nothing but people needs it, so a refusal changes nothing."""
        try:
            await self._emit(event)
        except ClusterError as error:
            _log.warning("Failed to emit an event: reason=%s error=%r", event.reason, str(error))

    async def delete_job(self) -> None:
        """Delete the job; its children go with it."""
        body = {"propagationPolicy": "Background", "preconditions": {"uid": self.key.uid}}
        await self._delete(self.key.path, body)

    def _mine(self) -> list[Object]:
        """Pods that the job owns: anybody may write a label."""
        return [pod for pod in self._pods.pods(self.key.uid) if self._owns(pod)]

    def _predecessors(self) -> tuple[Worker, ...]:
        """Workers of an earlier job of this name: they end with it, but may save first, and hold the run until then.

        They belong to no attempt of ours, and are not ours to delete.
        """
        pods = self._pods.others(self.key.uid, namespace=self.key.namespace, name=self.key.name)
        owned = [pod for pod in pods if any(self._is_namesake(o) for o in pod["metadata"].get("ownerReferences") or [])]
        return tuple(replace(worker_of(pod), attempt=0, ready=True) for pod in owned)

    def _is_namesake(self, owner: Object) -> bool:
        return (owner["kind"], owner["name"]) == (KIND, self.key.name) and bool(owner["uid"] != self.key.uid)

    def _owns(self, pod: Object) -> bool:
        meta = pod["metadata"]
        owners = meta.get("ownerReferences") or []
        return meta["namespace"] == self.key.namespace and any(owner["uid"] == self.key.uid for owner in owners)

    def _worker(self, pod: Object) -> Worker:
        worker = worker_of(pod)
        told = self._told.get(pod["metadata"]["uid"])
        if told is None:
            return worker
        ready = worker.terminating_since is None or time.monotonic() - told.at < SILENT_SECONDS
        return replace(worker, ready=ready, master=told.master, progress=worker.progress or told.progress)

    def _is_worth_asking(self, pod: Object) -> bool:
        """Progress is node rank 0's; of the others only the first answer matters, and whether they still save."""
        status, meta = pod.get("status", {}), pod["metadata"]
        if status.get("phase") != WorkerPhase.RUNNING or not status.get("podIP"):
            return False
        first = meta["labels"].get(labels.NODE_RANK) == "0"
        return first or meta["uid"] not in self._told or "deletionTimestamp" in meta

    async def _ask(self, pod: Object) -> None:
        address, meta = pod["status"]["podIP"], pod["metadata"]
        answer = await self._agents.fetch_status(address, port=_agent_port(pod), worker=meta["name"])
        if answer is not None:
            before = self._told.get(meta["uid"], _Told())
            master = _master(answer, address=address)
            self._told[meta["uid"]] = _Told(master, answer.progress or before.progress, at=time.monotonic())

    async def _delete_pod(self, pod: Object, grace_seconds: int) -> None:
        body = {
            "gracePeriodSeconds": max(grace_seconds, LEAST_GRACE_SECONDS),
            "preconditions": {"uid": pod["metadata"]["uid"]},
        }
        left = await self._delete(f"{self._pods_path}/{pod['metadata']['name']}", body)
        if left is None:
            self._pods.discard(pod)
        elif "deletionTimestamp" in left.get("metadata", {}):
            self._pods.put(left)

    async def _create(self, path: str, manifest: Object) -> Object | None:
        """None: there is one of that name already."""
        try:
            return await self._server.call("POST", path, body=manifest)
        except RefusedError as error:
            if error.status == 409:
                return None
            raise

    async def _delete(self, path: str, options: Object) -> Object | None:
        """None: there is none, or none of that uid."""
        body = {"apiVersion": "v1", "kind": "DeleteOptions", **options}
        try:
            return await self._server.call("DELETE", path, body=body)
        except RefusedError as error:
            if error.status in (404, 409):
                return None
            raise

    async def _emit(self, event: EmitEvent) -> None:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        name = f"{self.key.name}-{self.key.uid[:5]}.{event.reason.lower()}.{event.type.lower()}"
        path = f"/api/v1/namespaces/{quote(self.key.namespace)}/events"
        told = {"type": str(event.type), "message": event.message[:EVENT_MESSAGE], "lastTimestamp": now}
        manifest = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": name, "namespace": self.key.namespace},
            "involvedObject": {
                "apiVersion": API_VERSION,
                "kind": KIND,
                "namespace": self.key.namespace,
                "name": self.key.name,
                "uid": self.key.uid,
            },
            "reason": str(event.reason),
            "source": {"component": "steadfast"},
            "firstTimestamp": now,
            "count": 1,
            **told,
        }
        if await self._create(path, manifest) is None:
            known = await self._server.call("GET", f"{path}/{name}")
            await self._server.call("PATCH", f"{path}/{name}", body=told | {"count": known.get("count", 1) + 1})

    def _record_name(self, number: int) -> str:
        return labels.record_name(job=self.key.name, uid=self.key.uid, attempt=number)

    @property
    def _pods_path(self) -> str:
        return f"/api/v1/namespaces/{quote(self.key.namespace)}/pods"

    @property
    def _records_path(self) -> str:
        return f"/api/v1/namespaces/{quote(self.key.namespace)}/configmaps"


def _agent_port(pod: Object) -> int:
    ports = (port for container in pod["spec"]["containers"] for port in container.get("ports") or [])
    return next((int(port["containerPort"]) for port in ports if port.get("name") == "agent"), WorkerEnv.port)


def _master(answer: AgentStatus, *, address: str) -> str:
    """Where others reach node rank 0: its agent knows the port, but listens on every address of the pod."""
    port = answer.master.rpartition(":")[2]
    return f"{address}:{port}" if port else ""
