"""Names and labels of children, computed from the job: a repeated create collides instead of doubling."""

from __future__ import annotations

JOB_UID = "steadfast.dev/job-uid"
JOB_NAME = "steadfast.dev/job-name"
ATTEMPT = "steadfast.dev/attempt"
SERIAL = "steadfast.dev/serial"
NODE_RANK = "steadfast.dev/node-rank"


def worker_name(*, job: str, uid: str, serial: int) -> str:
    """Name of the worker with this serial; serials are never reused."""
    return f"{job}-{uid[:5]}-{serial}"


def policy_name(*, job: str, uid: str) -> str:
    """Name of the NetworkPolicy of a job's workers."""
    return f"{job}-{uid[:5]}"


def record_name(*, job: str, uid: str, attempt: int) -> str:
    """Name of the immutable record of one attempt."""
    return f"{job}-{uid[:5]}-attempt-{attempt}"
