"""What a job asks for, compared with what its profile allows: every excess, with the arithmetic and what to do.

`shell/observe.py` asks, before any pod exists; the answers become the condition Accepted=False.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from steadfast_operator.api.problems import Problem
from steadfast_operator.api.profile import Ceilings, ClusterTrainingProfile, ProfileMetadata, ProfileSpec
from steadfast_operator.api.quantities import excess
from steadfast_operator.api.types import TrainingJob

OUR_PREFIX = "steadfast-"
"""A fence: whoever may write a TrainingJob could otherwise use any account or secret of its namespace."""
FREE_RESOURCES = ("cpu", "memory", "ephemeral-storage")
"""What every node has: a job may ask for them though its profile is silent."""

Check = Callable[[TrainingJob, ClusterTrainingProfile], Iterator[Problem]]


def profile_problems(job: TrainingJob, profile: ClusterTrainingProfile | None) -> list[Problem]:
    """Everything about the job that its profile does not allow; None: there is no such profile."""
    if profile is None:
        return [_no_profile(job)]
    return [problem for check in CHECKS for problem in check(job, profile)]


def permitting(job: TrainingJob) -> ClusterTrainingProfile:
    """The profile that allows just what this job asks for and gives nothing: for places without an administrator."""
    store = job.spec.object_store
    spec = ProfileSpec(
        allowed_service_accounts=[store.service_account_name] if store.service_account_name else [],
        allowed_secrets=[store.credentials_secret] if store.credentials_secret else [],
        ceilings=Ceilings.model_construct(limits=job.spec.resources.limits),
    )
    return ClusterTrainingProfile(metadata=ProfileMetadata(name=job.spec.profile), spec=spec)


def _no_profile(job: TrainingJob) -> Problem:
    return Problem(
        path="spec.profile",
        what=f"there is no ClusterTrainingProfile {job.spec.profile!r} in this cluster",
        remedy="Name one of those that `kubectl get clustertrainingprofiles` lists, or ask an administrator for it",
    )


def image_not_allowed(job: TrainingJob, profile: ClusterTrainingProfile) -> Iterator[Problem]:
    """Only images of the administrator's choice run in the cluster."""
    patterns = profile.spec.allowed_images
    if patterns is None or any(matches(pattern, job.spec.image) for pattern in patterns):
        return
    yield Problem(
        path="spec.image",
        what=f"{job.spec.image!r} is no image that {_named(profile)} allows",
        remedy=f"Write one that matches {' or '.join(patterns)}" if patterns else "It allows none: use another profile",
    )


def secret_not_allowed(job: TrainingJob, profile: ClusterTrainingProfile) -> Iterator[Problem]:
    """A secret's keys become variables that a job can print."""
    name = job.spec.object_store.credentials_secret
    if name is not None and not _is_ours(name, allowed=profile.spec.allowed_secrets):
        yield _name_not_allowed("credentialsSecret", name, profile=profile)


def account_not_allowed(job: TrainingJob, profile: ClusterTrainingProfile) -> Iterator[Problem]:
    """A service account is what a cloud grants access to."""
    name = job.spec.object_store.service_account_name
    if name is not None and not _is_ours(name, allowed=profile.spec.allowed_service_accounts):
        yield _name_not_allowed("serviceAccountName", name, profile=profile)


def too_many_workers(job: TrainingJob, profile: ClusterTrainingProfile) -> Iterator[Problem]:
    """One job does not take the whole cluster."""
    workers, ceiling = job.spec.workers, profile.spec.ceilings.workers
    if ceiling is not None and workers > ceiling:
        yield Problem(
            path="spec.workers",
            what=f"{workers} workers are {workers - ceiling} more than the {ceiling} that {_named(profile)} allows",
            remedy=f"Write at most {ceiling}",
        )


def too_many_gpus(job: TrainingJob, profile: ClusterTrainingProfile) -> Iterator[Problem]:
    """More GPUs than a node has would leave the job pending for ever."""
    gpus, ceiling = job.spec.gpus_per_worker, profile.spec.ceilings.gpus_per_worker
    if ceiling is not None and gpus > ceiling:
        yield Problem(
            path="spec.gpusPerWorker",
            what=f"{gpus} GPUs for each worker are {gpus - ceiling} more than the {ceiling} that {_named(profile)} "
            "allows",
            remedy=f"Write at most {ceiling}",
        )


def resource_not_named(job: TrainingJob, profile: ClusterTrainingProfile) -> Iterator[Problem]:
    """Devices are scarce: a job gets those that its profile knows."""
    spec = profile.spec
    for name in job.spec.resources.limits:
        if name == spec.gpu_resource:
            yield Problem(
                path="spec.resources.limits",
                what=f"{name} is what gpusPerWorker asks for under {_named(profile)}",
                remedy="Write the number there, and leave it out here",
            )
        elif name not in (*FREE_RESOURCES, *spec.worker_resources, *spec.ceilings.limits):
            yield Problem(
                path="spec.resources.limits",
                what=f"{name} is no resource that {_named(profile)} names",
                remedy="Leave it out, or ask an administrator to name it in workerResources or ceilings.limits",
            )


def limit_above_ceiling(job: TrainingJob, profile: ClusterTrainingProfile) -> Iterator[Problem]:
    """What workers get by themselves is their ceiling, too, unless another is set."""
    given = {name: str(count) for name, count in profile.spec.worker_resources.items()}
    ceilings = given | profile.spec.ceilings.limits
    for name, limit in job.spec.resources.limits.items():
        ceiling = ceilings.get(name)
        if ceiling is not None and (more := excess(limit, over=ceiling)):
            yield Problem(
                path="spec.resources.limits",
                what=f"{name} {limit} is {more} more than the {ceiling} that {_named(profile)} allows each worker",
                remedy=f"Write at most {ceiling}",
            )


def limit_missing(job: TrainingJob, profile: ClusterTrainingProfile) -> Iterator[Problem]:
    """A worker without a limit may use all that its node has."""
    for name in FREE_RESOURCES:
        ceiling = profile.spec.ceilings.limits.get(name)
        if ceiling is not None and name not in job.spec.resources.limits:
            yield Problem(
                path="spec.resources.limits",
                what=f"sets no {name}, and a worker without a limit is above the {ceiling} that {_named(profile)} "
                "allows",
                remedy=f"Add {name}, at most {ceiling}",
            )


CHECKS: tuple[Check, ...] = (
    image_not_allowed,
    secret_not_allowed,
    account_not_allowed,
    too_many_workers,
    too_many_gpus,
    resource_not_named,
    limit_above_ceiling,
    limit_missing,
)


def matches(pattern: str, text: str) -> bool:
    """Whether the whole text is what the pattern says, * standing for any characters. Linear, unlike most regexes."""
    first, *rest = pattern.split("*")
    if not rest:
        return text == pattern
    *middle, last = rest
    if not text.startswith(first) or not text.endswith(last):
        return False
    at, end = len(first), len(text) - len(last)
    for part in middle:
        found = text.find(part, at, end)
        if found < 0:
            return False
        at = found + len(part)
    return at <= end


def _is_ours(name: str, *, allowed: list[str]) -> bool:
    return name.startswith(OUR_PREFIX) or name in allowed


def _name_not_allowed(field: str, name: str, *, profile: ClusterTrainingProfile) -> Problem:
    return Problem(
        path=f"spec.objectStore.{field}",
        what=f"{name!r} neither begins with {OUR_PREFIX} nor is allowed by {_named(profile)}",
        remedy=f"Name one that begins with {OUR_PREFIX}, or ask an administrator to allow this one",
    )


def _named(profile: ClusterTrainingProfile) -> str:
    return f"profile {profile.metadata.name}"
