"""What a new worker is told. The adapters turn it into a pod or a process."""

from __future__ import annotations

from steadfast_contract.env import WorkerEnv
from steadfast_operator.api.labels import worker_name
from steadfast_operator.api.types import ObjectStore, TrainingJob
from steadfast_operator.core.actions import CreateWorker


def worker_env(job: TrainingJob, action: CreateWorker, *, training: str) -> WorkerEnv:
    """The environment of one worker's agent; `training` is the `TrainingConfig` as JSON."""
    meta = job.metadata
    return WorkerEnv(
        job=f"{meta.namespace}/{meta.name}",
        job_uid=meta.uid,
        worker=worker_name(job=meta.name, uid=meta.uid, serial=action.serial),
        attempt=action.attempt,
        node_rank=action.node_rank,
        num_workers=action.num_workers,
        ranks_per_worker=job.spec.ranks,
        master=action.master,
        training=training,
    )


def store_variables(store: ObjectStore) -> dict[str, str]:
    """How a worker reaches the object store, as far as the store says so."""
    named = {"S3_ENDPOINT_URL": store.endpoint, "AWS_REGION": store.region}
    return {name: value for name, value in named.items() if value is not None}
