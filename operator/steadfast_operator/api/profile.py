"""ClusterTrainingProfile as pydantic models: what jobs may ask of a cluster, and what their pods get from it.

An administrator owns it; a job names one in `spec.profile`. `acceptance.py` compares the two, `core/pods.py` applies
it.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

from pydantic import Field

from steadfast_operator.api.fields import DNS_NAME, QUALIFIED_NAME, ApiModel, Count, DnsName, ResourceQuantity
from steadfast_operator.api.types import API_VERSION, ObjectStore

KIND = "ClusterTrainingProfile"

LabelKey = Annotated[str, Field(max_length=317, pattern=f"^({DNS_NAME}/)?{QUALIFIED_NAME}$")]
LabelValue = Annotated[str, Field(max_length=63, pattern=f"^({QUALIFIED_NAME})?$")]
VendorResource = Annotated[str, Field(max_length=317, pattern=f"^{DNS_NAME}/{QUALIFIED_NAME}$")]
"""A resource of a device plugin, such as nvidia.com/gpu."""
WorkerResource = Annotated[
    str, Field(max_length=317, pattern=f"^({DNS_NAME}/{QUALIFIED_NAME}|hugepages-[1-9][0-9]*[KMG]i)$")
]
LimitedResource = Annotated[
    str, Field(max_length=317, pattern=f"^(cpu|memory|ephemeral-storage|{DNS_NAME}/{QUALIFIED_NAME})$")
]
Variable = Annotated[str, Field(max_length=253, pattern="^[A-Za-z_][A-Za-z0-9_]*$")]

Names = Annotated[list[DnsName], Field(max_length=64, json_schema_extra={"x-kubernetes-list-type": "set"})]


class TolerationOperator(StrEnum):
    """How a toleration is compared with a taint."""

    EQUAL = "Equal"
    EXISTS = "Exists"


class TaintEffect(StrEnum):
    """What a taint does to pods."""

    NO_SCHEDULE = "NoSchedule"
    PREFER_NO_SCHEDULE = "PreferNoSchedule"
    NO_EXECUTE = "NoExecute"


class Toleration(ApiModel):
    """A taint that workers put up with, as in a pod."""

    key: LabelKey | None = Field(default=None, description="Omitted: every taint; the operator is then Exists.")
    operator: TolerationOperator = TolerationOperator.EQUAL
    value: LabelValue | None = None
    effect: TaintEffect | None = Field(default=None, description="Omitted: all effects.")
    toleration_seconds: int | None = Field(
        default=None, ge=0, le=31_536_000, description="Of NoExecute; omitted: for ever."
    )


class Capability(StrEnum):
    """Capabilities that training has a use for."""

    IPC_LOCK = "IPC_LOCK"
    NET_ADMIN = "NET_ADMIN"
    NET_RAW = "NET_RAW"
    PERFMON = "PERFMON"
    SYS_ADMIN = "SYS_ADMIN"
    SYS_NICE = "SYS_NICE"
    SYS_PTRACE = "SYS_PTRACE"
    SYS_RESOURCE = "SYS_RESOURCE"


class Ceilings(ApiModel):
    """The most that one job may ask for."""

    workers: int | None = Field(default=None, ge=1, le=100_000)
    gpus_per_worker: int | None = Field(default=None, ge=0, le=64)
    limits: dict[LimitedResource, ResourceQuantity] = Field(
        default_factory=dict,
        max_length=16,
        description="By resource, for each worker: a job must then set a limit of cpu, memory or ephemeral-storage in "
        "spec.resources.limits, because one without is above every ceiling.",
        json_schema_extra={"x-steadfast-names": "resource: cpu, memory, ephemeral-storage, or a vendor's, as rdma/hca"},
    )


class ProfileSpec(ApiModel):
    """What a job that names the profile may ask for, and what its workers get."""

    description: str = Field(default="", max_length=1024, description="For people.")
    node_selector: dict[LabelKey, LabelValue] = Field(
        default_factory=dict,
        max_length=16,
        description="Labels of the nodes that workers run on.",
        json_schema_extra={"x-steadfast-names": "key of a label, such as topology.kubernetes.io/zone"},
    )
    tolerations: list[Toleration] = Field(
        default_factory=list, max_length=16, json_schema_extra={"x-kubernetes-list-type": "atomic"}
    )
    gpu_resource: VendorResource = Field(
        default="nvidia.com/gpu", description="The resource that a job's gpusPerWorker asks for."
    )
    worker_resources: dict[WorkerResource, Count] = Field(
        default_factory=dict,
        max_length=16,
        description="Further resources that each worker gets, such as rdma/hca, vpc.amazonaws.com/efa or "
        "hugepages-2Mi. A job may ask for less of one in spec.resources.limits.",
        json_schema_extra={"x-steadfast-names": "resource of a vendor, such as rdma/hca, or hugepages-2Mi"},
    )
    annotations: dict[LabelKey, Annotated[str, Field(max_length=4096)]] = Field(
        default_factory=dict,
        max_length=16,
        description="Of the workers' pods: k8s.v1.cni.cncf.io/networks for Multus, for example.",
        json_schema_extra={"x-steadfast-names": "key of an annotation, such as k8s.v1.cni.cncf.io/networks"},
    )
    host_network: bool = Field(
        default=False,
        description="Workers use their node's network, at most one on each node. NetworkPolicies do not apply to it.",
    )
    capabilities: list[Capability] = Field(
        default_factory=list,
        max_length=8,
        json_schema_extra={"x-kubernetes-list-type": "set"},
        description="Capabilities that programs of the image may gain. Workers are not root: a program has them if its "
        "file carries them (setcap), so any of these also lifts the ban on gaining privileges.",
    )
    environment: dict[Variable, Annotated[str, Field(max_length=4096)]] = Field(
        default_factory=dict,
        max_length=64,
        description="Variables of every worker, such as NCCL_IB_HCA. Values are taken as they are.",
        json_schema_extra={"x-steadfast-names": "environment variable, such as NCCL_IB_HCA"},
    )
    object_store: ObjectStore = Field(
        default=ObjectStore(),
        description="What a job's objectStore leaves out; names in it need no prefix.",
    )
    image_pull_secrets: Names = Field(
        default_factory=list, description="Secrets of the job's namespace that images are pulled with."
    )
    allowed_images: list[Annotated[str, Field(min_length=1, max_length=512, pattern=r"^[^\s]+$")]] | None = Field(
        default=None,
        max_length=64,
        json_schema_extra={"x-kubernetes-list-type": "set"},
        description="Patterns of whole image references in which * stands for any characters; omitted: any image.",
    )
    allowed_service_accounts: Names = Field(
        default_factory=list, description="Accounts that jobs may name, beside those that begin with steadfast-."
    )
    allowed_secrets: Names = Field(
        default_factory=list, description="Secrets that jobs may name, beside those that begin with steadfast-."
    )
    ceilings: Ceilings = Ceilings()


class ProfileMetadata(ApiModel):
    """The part of ObjectMeta that we read."""

    name: str = Field(min_length=1, max_length=253)


class ClusterTrainingProfile(ApiModel):
    """What TrainingJobs may ask of this cluster, and what their workers get: an administrator's."""

    api_version: str = API_VERSION
    kind: str = KIND
    metadata: ProfileMetadata
    spec: ProfileSpec = ProfileSpec()

    def to_object(self) -> dict[str, Any]:
        """As the API server holds it."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)
