"""TrainingJob as pydantic models: defaults, bounds and the user documentation of every field live here.

`crd.py` turns these models into the CustomResourceDefinition. Reading is lenient about unknown fields (an old
operator meets a newer object); `steadfast validate` and the API server's strict field validation are not.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from steadfast_operator.api.fields import ApiModel, Count, DnsName, ObjectUri, ResourceQuantity, Seconds
from steadfast_operator.api.quantities import parse_count

API_VERSION = "steadfast.dev/v1alpha1"
KIND = "TrainingJob"


class Device(StrEnum):
    """Where ranks compute."""

    AUTO = "auto"
    CUDA = "cuda"
    CPU = "cpu"


class Recipe(StrEnum):
    """Arithmetic of the matrix products; weights and optimizer state stay in fp32."""

    FP32 = "fp32"
    BF16 = "bf16"


class Decay(StrEnum):
    """Course of the learning rate after the warm-up."""

    COSINE = "cosine"
    CONSTANT = "constant"


class Resume(StrEnum):
    """What a new job does with checkpoints that its run already has."""

    AUTO = "auto"
    NEVER = "never"


class Preset(StrEnum):
    """Named model shapes."""

    MOE_NANO = "moe-nano"
    MOE_TINY = "moe-tiny"
    DBRX = "dbrx"


class Model(ApiModel):
    """The model: a preset, with any of its numbers overridden."""

    preset: Preset = Field(description="Named model shape that the other fields override.")
    layers: int | None = Field(default=None, ge=1, le=1024)
    hidden_size: int | None = Field(default=None, ge=8, le=131_072)
    heads: int | None = Field(default=None, ge=1, le=1024)
    kv_heads: int | None = Field(default=None, ge=1, le=1024)
    ffn_hidden_size: int | None = Field(default=None, ge=8, le=1_048_576)
    experts: int | None = Field(default=None, ge=1, le=4096)
    experts_per_token: int | None = Field(default=None, ge=1, le=4096)
    vocabulary_size: int | None = Field(default=None, ge=2, le=16_777_216)
    context_length: int | None = Field(default=None, ge=2, le=16_777_216)
    rope_theta: float | None = Field(default=None, gt=0)


class Precision(ApiModel):
    """How numbers are held while computing."""

    recipe: Recipe = Field(default=Recipe.FP32, description="fp32, or bf16 matrix products with fp32 weights.")


class Optimizer(ApiModel):
    """AdamW with decoupled weight decay."""

    learning_rate: float = Field(default=3e-4, gt=0, le=10, description="Peak learning rate, after the warm-up.")
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.95, ge=0, lt=1)
    epsilon: float = Field(default=1e-8, gt=0, le=1)
    weight_decay: float = Field(default=0.1, ge=0, le=10, description="Applies to matrices, not to norms.")
    gradient_clip: float = Field(default=1.0, gt=0, le=1e6, description="Bound on the global gradient norm.")


class Schedule(ApiModel):
    """Course of the learning rate: linear warm-up, then decay."""

    warmup_tokens: Annotated[int, BeforeValidator(parse_count)] = Field(
        default=0, ge=0, json_schema_extra={"x-steadfast-quantity": True}
    )
    decay: Decay = Decay.COSINE
    final_fraction: float = Field(default=0.1, ge=0, le=1, description="Share of the peak rate left at the end.")


class Train(ApiModel):
    """How long and in what portions to train. Exactly one of `tokens` and `steps`."""

    tokens: Count | None = Field(default=None, description="Tokens to train on; rounded up to whole steps.")
    steps: int | None = Field(default=None, ge=1, le=10**9, description="Optimizer steps to train.")
    global_batch_tokens: Count = Field(description="Tokens per optimizer step, over all ranks.")
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    seed: int = Field(default=17, ge=0, le=2**31 - 1, description="Seed of the weights and of the data order.")


class Stream(ApiModel):
    """A folder of MDS shards in an object store, written by `steadfast data prepare`."""

    name: str = Field(min_length=1, max_length=63, pattern=r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$")
    remote: ObjectUri


class Data(ApiModel):
    """What to train on."""

    tokenizer: ObjectUri = Field(description="The tokenizer.json that the shards were tokenized with.")
    streams: list[Stream] = Field(
        min_length=1,
        max_length=1,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )


class Checkpoint(ApiModel):
    """Where and how often the state is saved."""

    destination: ObjectUri = Field(description="Checkpoints live under <destination>/<runName>/.")
    resume: Resume = Field(default=Resume.AUTO, description="auto continues the run; never starts it afresh.")
    interval_seconds: Seconds = Field(default=120, description="Time between two checkpoints.")


class ObjectStore(ApiModel):
    """How to reach the object store."""

    endpoint: str | None = Field(
        default=None,
        max_length=512,
        pattern=r"^https?://[^\s/?#]+/?$",
        description="URL of an S3 service; the default is the environment's (S3_ENDPOINT_URL), else AWS.",
    )
    region: str | None = Field(default=None, max_length=63, pattern=r"^[a-z0-9-]+$")
    credentials_secret: DnsName | None = Field(
        default=None,
        description="Secret of the job's namespace whose keys (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY ...) become "
        "environment variables of every worker; its name begins with steadfast-, or the profile allows it. Only in a "
        "cluster: locally the environment of `steadfast run` counts.",
    )
    service_account_name: DnsName | None = Field(
        default=None,
        description="Service account of the workers, for clouds that grant access to one; its name begins with "
        "steadfast-, or the profile allows it. Only in a cluster.",
    )


class Resources(ApiModel):
    """What each worker may use."""

    limits: dict[str, ResourceQuantity] = Field(
        default_factory=dict,
        max_length=16,
        description="By resource: cpu, memory, ephemeral-storage, or one of a vendor's; requests are the same. GPUs "
        "are gpusPerWorker's. Only in a cluster: local workers share the machine.",
    )


class Hang(ApiModel):
    """When silence of a running gang counts as a hang."""

    init_seconds: Seconds = Field(default=600, description="From a worker's start to its first training step.")
    first_step_seconds: Seconds = Field(default=900, description="Between two steps, the first one included.")


class FaultTolerance(ApiModel):
    """What to survive, and how often."""

    max_restarts: int = Field(
        default=10, ge=0, le=10_000, description="Restarts for the user's own errors; infrastructure is not counted."
    )
    start_timeout_seconds: Seconds = Field(default=60, description="From a worker's creation to its agent's answer.")
    hang: Hang = Hang()


class TrainingJobSpec(ApiModel):
    """A whole run in one manifest."""

    run_name: str | None = Field(
        default=None,
        min_length=1,
        max_length=253,
        pattern=r"^[A-Za-z0-9]([A-Za-z0-9._/-]*[A-Za-z0-9])?$",
        description="What checkpoints belong to; default <namespace>/<name>.",
    )
    image: str = Field(min_length=1, max_length=512, pattern=r"^[^\s]+$", description="The trainer image.")
    workers: int = Field(default=1, ge=1, le=100_000, description="Pods, normally one per node.")
    gpus_per_worker: int = Field(default=0, ge=0, le=64)
    ranks_per_worker: int | None = Field(
        default=None, ge=1, le=64, description="Training processes per worker; default max(1, gpusPerWorker)."
    )
    device: Device = Device.AUTO
    profile: DnsName = Field(
        default="default",
        description="The ClusterTrainingProfile whose nodes, networks and limits apply: an administrator's. Only in a "
        "cluster.",
    )
    model: Model
    precision: Precision = Precision()
    train: Train
    data: Data
    checkpoint: Checkpoint
    object_store: ObjectStore = ObjectStore()
    resources: Resources = Resources()
    fault_tolerance: FaultTolerance = FaultTolerance()
    suspend: bool = Field(default=False, description="Save, stop all workers and wait.")
    active_deadline_seconds: Seconds | None = Field(
        default=None, description="The job fails when it has run longer than this, suspensions included."
    )
    ttl_seconds_after_finished: int | None = Field(
        default=None,
        ge=0,
        le=31_536_000,
        description="The job is deleted so long after its end; its checkpoints stay. Only in a cluster.",
    )

    @property
    def ranks(self) -> int:
        """Training processes on each worker."""
        return self.ranks_per_worker or max(1, self.gpus_per_worker)


class ConditionStatus(StrEnum):
    """Whether a condition holds."""

    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


class Condition(ApiModel):
    """One fact about the job, since when, and why."""

    type: str = Field(max_length=63)
    status: ConditionStatus
    reason: str = Field(max_length=63)
    message: str = Field(default="", max_length=1024)
    last_transition_time: datetime
    observed_generation: int = 0


class ProgressStatus(ApiModel):
    """How far training is."""

    step: int = 0
    steps: int = 0
    tokens: int = 0
    loss: float | None = None
    tokens_per_second: float | None = None
    percent: float = 0.0
    eta: datetime | None = None
    updated: datetime | None = None


class CheckpointStatus(ApiModel):
    """Newest complete checkpoint."""

    step: int
    uri: str = Field(max_length=2048)
    at: datetime


class Restarts(ApiModel):
    """Restarts so far: attempts after the first that a failure caused."""

    total: int = 0
    by_class: dict[str, int] = Field(default_factory=dict, max_length=64)
    recent: list[datetime] = Field(
        default_factory=list, max_length=256, description="Times of restarts within the storm breaker's window."
    )
    without_progress: int = Field(
        default=0, description="Failures in a row without a newer checkpoint or a new step between them."
    )
    best_step: int = Field(default=0, description="Highest step that any attempt finished.")


class LastFailure(ApiModel):
    """The newest failure and what was done about it."""

    class_: str = Field(alias="class", max_length=63)
    worker: str = Field(max_length=63)
    rank: int | None = None
    evidence: str = Field(default="", max_length=1024)
    at: datetime
    remedy: str = Field(default="", max_length=253)


class AttemptStatus(ApiModel):
    """One attempt in the history."""

    number: int
    reason: str = Field(max_length=63)
    started: datetime
    ended: datetime | None = None
    outcome: str = Field(default="", max_length=63, description="Why it ended.")
    resumed_from: int | None = None
    workers_created: int = Field(default=0, description="Workers seen to exist, in node-rank order.")


class TrainingJobStatus(ApiModel):
    """What the operator knows. Everything that it must remember across its own restarts is here or in records."""

    observed_generation: int = 0
    attempt: int = 0
    next_serial: int = 0
    config_digest: str = Field(default="", max_length=71)
    started: datetime | None = None
    finished: datetime | None = None
    restart_at: datetime | None = Field(default=None, description="Earliest time of the next start, while backing off.")
    conditions: list[Condition] = Field(
        default_factory=list,
        max_length=16,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )
    progress: ProgressStatus | None = None
    checkpoint: CheckpointStatus | None = None
    restarts: Restarts = Restarts()
    last_failure: LastFailure | None = None
    attempts: list[AttemptStatus] = Field(default_factory=list, max_length=10)
    state: str = Field(default="", max_length=63, description="For people: derived from the conditions.")
    workers_ready: str = Field(default="", max_length=32, description="For people: ready/desired.")


class Metadata(ApiModel):
    """The part of ObjectMeta that we read."""

    name: str = Field(min_length=1, max_length=40, pattern=r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$")
    namespace: str = "default"
    uid: str = ""
    generation: int = 1
    creation_timestamp: datetime | None = None
    deletion_timestamp: datetime | None = None


class TrainingJob(ApiModel):
    """One training run: `kubectl apply` it and it finishes."""

    api_version: str = API_VERSION
    kind: str = KIND
    metadata: Metadata
    spec: TrainingJobSpec
    status: TrainingJobStatus = TrainingJobStatus()

    @property
    def run_name(self) -> str:
        """What the job's checkpoints belong to."""
        return self.spec.run_name or f"{self.metadata.namespace}/{self.metadata.name}"

    @property
    def run_uri(self) -> str:
        """Where the job's checkpoints live."""
        return f"{self.spec.checkpoint.destination.rstrip('/')}/{self.run_name}"

    def to_object(self) -> dict[str, Any]:
        """As the API server holds it."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)
