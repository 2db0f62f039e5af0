"""What no single field can be blamed for: numbers that do not go together, with the arithmetic spelled out.

`validate.py` and the operator (condition Accepted=False) ask `cross_field_problems`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Set

from steadfast_operator.api.problems import Problem
from steadfast_operator.api.resolve import model_shape, total_steps, whole_steps
from steadfast_operator.api.types import Device, TrainingJob

MAX_STEPS = 10**9
_NAMESPACE = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_RESOURCE = re.compile(
    r"cpu|memory|ephemeral-storage|[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?/[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?"
)

Check = Callable[[TrainingJob], Problem | None]


def cross_field_problems(job: TrainingJob, *, ignoring: Set[str] = frozenset()) -> list[Problem]:
    """Everything about the job that does not go together; checks that read a path in `ignoring` are left out."""
    return list(_problems(job, ignoring=ignoring))


def _problems(job: TrainingJob, *, ignoring: Set[str]) -> Iterator[Problem]:
    for check, reads in CHECKS:
        if not any(_overlap(path, other) for path in reads for other in ignoring):
            problem = check(job)
            if problem is not None:
                yield problem


def _overlap(path: str, other: str) -> bool:
    return path == other or path.startswith((f"{other}.", f"{other}[")) or other.startswith((f"{path}.", f"{path}["))


def namespace_is_no_label(job: TrainingJob) -> Problem | None:
    """A namespace is a DNS label."""
    namespace = job.metadata.namespace
    if _NAMESPACE.fullmatch(namespace):
        return None
    return Problem(
        path="metadata.namespace",
        what=f"{namespace!r} is no name of a namespace",
        remedy="Write at most 63 lowercase letters, digits and '-', with a letter or digit at both ends",
    )


def run_name_climbs(job: TrainingJob) -> Problem | None:
    """Object stores and HTTP clients disagree about the key that such a name makes."""
    wrong = {"": "an empty", ".": "a '.'", "..": "a '..'"}
    segments = [segment for segment in (job.spec.run_name or "run").split("/") if segment in wrong]
    if not segments:
        return None
    return Problem(
        path="spec.runName",
        what=f"{job.spec.run_name!r} has {wrong[segments[0]]} segment, which object stores and tools read differently",
        remedy="Give every segment between slashes a name",
    )


def device_without_gpus(job: TrainingJob) -> Problem | None:
    """CUDA ranks need GPUs."""
    if job.spec.device is not Device.CUDA or job.spec.gpus_per_worker > 0:
        return None
    return Problem(
        path="spec.device",
        what="cuda needs GPUs, but gpusPerWorker is 0",
        remedy="Set gpusPerWorker, or write device: auto or cpu",
    )


def more_ranks_than_gpus(job: TrainingJob) -> Problem | None:
    """A rank has a GPU of its own."""
    ranks, gpus = job.spec.ranks, job.spec.gpus_per_worker
    if gpus == 0 or ranks <= gpus:
        return None
    return Problem(
        path="spec.ranksPerWorker",
        what=f"{ranks} ranks share {gpus} GPUs (gpusPerWorker) on each worker, but a rank needs one of its own",
        remedy=f"Write at most {gpus}, or leave it out",
    )


def not_one_length(job: TrainingJob) -> Problem | None:
    """A run is as long as its tokens or its steps say, not both."""
    train = job.spec.train
    if (train.tokens is None) != (train.steps is None):
        return None
    if train.tokens is None:
        what, remedy = "sets neither tokens nor steps, so the run has no end", "Add one: tokens: 12T, or steps: 1000"
    else:
        what, remedy = f"sets both tokens ({train.tokens}) and steps ({train.steps})", "Keep one of them"
    return Problem(path="spec.train", what=what, remedy=remedy)


def resource_is_none(job: TrainingJob) -> Problem | None:
    """Kubernetes knows three resources by one word; all others carry their vendor's domain."""
    for name in job.spec.resources.limits:
        if name.endswith(".com/gpu"):
            what, remedy = f"{name} belongs in gpusPerWorker", "Write the number there, and leave it out here"
        elif _RESOURCE.fullmatch(name) and not name.startswith("requests."):
            continue
        else:
            what = f"{name!r} is no resource"
            remedy = "Write cpu, memory, ephemeral-storage, or one with its domain, such as rdma/hca"
        return Problem(path="spec.resources.limits", what=what, remedy=remedy)
    return None


def shape_is_no_model(job: TrainingJob) -> Problem | None:
    """Preset and overrides make a transformer."""
    try:
        model_shape(job.spec.model)
    except ValueError as error:
        remedy = f"Change one of the numbers; those not written come from the preset {job.spec.model.preset.value}"
        return Problem(path="spec.model", what=str(error), remedy=remedy)
    return None


def batch_does_not_divide(job: TrainingJob) -> Problem | None:
    """A step is whole sequences, the same number for every rank."""
    tokens, workers, ranks = job.spec.train.global_batch_tokens, job.spec.workers, job.spec.ranks
    try:
        context = model_shape(job.spec.model).context_length
    except ValueError:
        return None  # shape_is_no_model says so
    samples, rest = divmod(tokens, context)
    if rest == 0 and samples % (workers * ranks) == 0:
        return None
    shared = f"{workers} workers x {ranks} ranks = {workers * ranks} ranks"
    if rest:
        what = f"{tokens} is no multiple of contextLength {context}: {tokens} = {samples} x {context} + {rest}"
    else:
        what = f"{tokens} tokens are {samples} sequences of {context}, which {shared} cannot share evenly"
    unit = workers * ranks * context
    lower, upper = max(1, tokens // unit) * unit, (max(1, tokens // unit) + 1) * unit
    return Problem(
        path="spec.train.globalBatchTokens",
        what=what,
        remedy=f"Write a multiple of {unit} ({shared}, {context} tokens each), such as {lower} or {upper}",
    )


def too_many_steps(job: TrainingJob) -> Problem | None:
    """The bound on train.steps, for runs given in tokens."""
    train = job.spec.train
    steps = whole_steps(train.tokens or 0, global_batch_tokens=train.global_batch_tokens)
    if steps <= MAX_STEPS:
        return None
    return Problem(
        path="spec.train.tokens",
        what=f"{train.tokens} tokens / {train.global_batch_tokens} tokens per step = {steps} steps, above {MAX_STEPS}",
        remedy="Train on fewer tokens, or raise globalBatchTokens",
    )


def warmup_without_end(job: TrainingJob) -> Problem | None:
    """The warm-up ends before the run does."""
    train, batch = job.spec.train, job.spec.train.global_batch_tokens
    try:
        steps = total_steps(train)
    except ValueError:
        return None  # not_one_length says so
    warmup = train.schedule.warmup_tokens
    if whole_steps(warmup, global_batch_tokens=batch) < steps:
        return None
    return Problem(
        path="spec.train.schedule.warmupTokens",
        what=f"{warmup} tokens are {whole_steps(warmup, global_batch_tokens=batch)} steps of {batch} tokens, "
        f"but the whole run has only {steps}",
        remedy=f"Write at most {(steps - 1) * batch}, or train longer",
    )


_BATCH = ("spec.train.globalBatchTokens",)
_LENGTH = ("spec.train.tokens", "spec.train.steps")
_RANKS = ("spec.gpusPerWorker", "spec.ranksPerWorker")

CHECKS: tuple[tuple[Check, tuple[str, ...]], ...] = (
    (namespace_is_no_label, ("metadata.namespace",)),
    (run_name_climbs, ("spec.runName",)),
    (device_without_gpus, ("spec.device", "spec.gpusPerWorker")),
    (more_ranks_than_gpus, _RANKS),
    (resource_is_none, ("spec.resources",)),
    (shape_is_no_model, ("spec.model",)),
    (not_one_length, _LENGTH),
    (batch_does_not_divide, (*_BATCH, *_RANKS, "spec.workers", "spec.model")),
    (too_many_steps, (*_BATCH, *_LENGTH)),
    (warmup_without_end, (*_BATCH, *_LENGTH, "spec.train.schedule.warmupTokens")),
)
"""Every check, and the fields that it reads."""
