"""The CustomResourceDefinitions, made from the pydantic models: `python -m steadfast_operator.api.crd PLURAL`.

`crds/` holds them. What no single field's schema can say is a rule here, in CEL.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml
from pydantic import BaseModel

from steadfast_operator.api.profile import ClusterTrainingProfile
from steadfast_operator.api.structural import Schema, to_structural
from steadfast_operator.api.types import TrainingJob, TrainingJobSpec

GROUP = "steadfast.dev"
VERSION = "v1alpha1"
PLURAL = "trainingjobs"
PROFILES = "clustertrainingprofiles"

MUTABLE = {
    "suspend", "faultTolerance", "activeDeadlineSeconds", "ttlSecondsAfterFinished", "checkpoint.intervalSeconds",
}  # fmt: skip
"""Paths below spec that may change at any time: workers need not restart with another configuration for them."""

IMMUTABLE = {
    "runName": "runName never changes, because checkpoints belong to it: create another job for another run",
    "checkpoint.destination": (
        "checkpoint.destination never changes, because the run's checkpoints are there: create another job"
    ),
}
"""Paths below spec that never change, with what the API server answers."""

_JOB_RULES: dict[str, list[Schema]] = {
    "": [
        {
            "rule": "self.metadata.name.size() <= 40",
            "message": "metadata.name is longer than 40 characters, which leaves no room for the names of workers: "
            "choose a shorter one",
        },
    ],
    "spec": [
        {
            "rule": "self.device != 'cuda' || self.gpusPerWorker > 0",
            "message": "device is cuda but gpusPerWorker is 0: set gpusPerWorker, or device auto or cpu",
            "fieldPath": ".device",
        },
        {
            "rule": "!has(self.ranksPerWorker) || self.gpusPerWorker == 0 || self.ranksPerWorker <= self.gpusPerWorker",
            "message": "ranksPerWorker exceeds gpusPerWorker: a rank needs a GPU of its own; lower ranksPerWorker or "
            "leave it out",
            "fieldPath": ".ranksPerWorker",
        },
        {
            "rule": "!has(self.runName) || !self.runName.matches('(^|/)[.]{0,2}(/|$)')",
            "message": "runName has an empty, '.' or '..' segment, which object stores and tools read differently: "
            "name every segment",
            "fieldPath": ".runName",
        },
    ],
    "spec.model": [
        {
            "rule": "!has(self.experts) || !has(self.expertsPerToken) || self.expertsPerToken <= self.experts",
            "message": "expertsPerToken exceeds experts: a token cannot visit more experts than there are",
            "fieldPath": ".expertsPerToken",
        },
    ],
    "spec.train": [
        {
            "rule": "has(self.tokens) != has(self.steps)",
            "message": "set exactly one of tokens and steps",
        },
    ],
}

_JOB_COLUMNS: list[Schema] = [
    {"name": "State", "type": "string", "jsonPath": ".status.state"},
    {"name": "Workers", "type": "string", "jsonPath": ".status.workersReady", "description": "Ready/desired."},
    {"name": "Step", "type": "integer", "jsonPath": ".status.progress.step"},
    {"name": "Progress", "type": "number", "jsonPath": ".status.progress.percent", "description": "Percent of steps."},
    {"name": "Restarts", "type": "integer", "jsonPath": ".status.restarts.total"},
    {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
    {"name": "Attempt", "type": "integer", "jsonPath": ".status.attempt", "priority": 1},
    {"name": "Last Failure", "type": "string", "jsonPath": ".status.lastFailure.class", "priority": 1},
    {"name": "Image", "type": "string", "jsonPath": ".spec.image", "priority": 1},
]


_PROFILE_RULES: dict[str, list[Schema]] = {
    "spec": [
        {
            "rule": "!has(self.workerResources) || !(self.gpuResource in self.workerResources)",
            "message": "workerResources names gpuResource, which jobs ask for by gpusPerWorker: leave it out",
            "fieldPath": ".workerResources",
        },
    ],
    "spec.environment": [
        {
            "rule": "!self.exists(name, ['STEADFAST_', 'AWS_', 'S3_'].exists(ours, name.startsWith(ours)))",
            "message": "environment names a variable that begins with STEADFAST_, AWS_ or S3_: those are told to "
            "workers by Steadfast and by a job's credentialsSecret",
        },
    ],
    "spec.tolerations[]": [
        {
            "rule": "has(self.key) || self.operator == 'Exists'",
            "message": "a toleration without a key puts up with every taint: write operator Exists, or a key",
        },
        {
            "rule": "self.operator != 'Exists' || !has(self.value) || self.value == ''",
            "message": "a toleration with operator Exists has no value: leave it out, or write operator Equal",
            "fieldPath": ".value",
        },
        {
            "rule": "!has(self.tolerationSeconds) || (has(self.effect) && self.effect == 'NoExecute')",
            "message": "tolerationSeconds is of the effect NoExecute alone: write that effect, or leave it out",
            "fieldPath": ".tolerationSeconds",
        },
    ],
}

_PROFILE_COLUMNS: list[Schema] = [
    {"name": "GPU", "type": "string", "jsonPath": ".spec.gpuResource"},
    {"name": "Max Workers", "type": "integer", "jsonPath": ".spec.ceilings.workers"},
    {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
    {"name": "Description", "type": "string", "jsonPath": ".spec.description", "priority": 1},
]


@dataclass(frozen=True, kw_only=True)
class _Resource:
    """What one definition is made of."""

    model: type[BaseModel]
    scope: str
    short_name: str
    rules: dict[str, list[Schema]]
    columns: list[Schema]


RESOURCES = {
    PLURAL: _Resource(model=TrainingJob, scope="Namespaced", short_name="tjob", rules=_JOB_RULES, columns=_JOB_COLUMNS),
    PROFILES: _Resource(
        model=ClusterTrainingProfile,
        scope="Cluster",
        short_name="ctp",
        rules=_PROFILE_RULES,
        columns=_PROFILE_COLUMNS,
    ),
}
"""By plural; each is a file of crds/."""


def custom_resource_definition(plural: str = PLURAL) -> Schema:
    """The whole object, ready for `kubectl apply`."""
    resource = RESOURCES[plural]
    kind = resource.model.__name__
    schema = _schema(resource)
    if resource.model is TrainingJob:
        schema["properties"]["spec"]["x-kubernetes-validations"].extend(_update_rules())
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "names": {
                "kind": kind,
                "listKind": f"{kind}List",
                "plural": plural,
                "singular": kind.lower(),
                "shortNames": [resource.short_name],
            },
            "scope": resource.scope,
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    **({"subresources": {"status": {}}} if "status" in schema["properties"] else {}),
                    "additionalPrinterColumns": resource.columns,
                    "schema": {"openAPIV3Schema": schema},
                }
            ],
        },
    }


def _schema(resource: _Resource) -> Schema:
    written = resource.model.model_json_schema(by_alias=True)
    parts = {
        name: to_structural(part, definitions=written["$defs"], path=name)
        for name, part in written["properties"].items()
        if name in ("spec", "status")
    }
    for part in parts.values():  # the two as wholes have no defaults: spec must be written, status is ours
        part.pop("default", None)
    schema: Schema = {
        "description": written["description"],
        "type": "object",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            **parts,
        },
    }
    for path, rules in resource.rules.items():
        _at(schema, path).setdefault("x-kubernetes-validations", []).extend(rules)
    return schema


def _at(schema: Schema, path: str) -> Schema:
    for name in path.split(".") if path else ():
        schema = schema["properties"][name.removesuffix("[]")]
        schema = schema["items"] if name.endswith("[]") else schema
    return schema


def _update_rules() -> list[Schema]:
    """What an update may not change: every field of spec, except those named above, one rule each."""
    never: list[Schema] = [
        {"rule": _unchanged(path), "message": message, "fieldPath": f".{path}", "reason": "FieldValueForbidden"}
        for path, message in IMMUTABLE.items()
    ]
    while_running: list[Schema] = [
        {
            # Both sides, so that one update may suspend and change, or change and resume.
            "rule": f"self.suspend || oldSelf.suspend || ({_unchanged(path)})",
            "message": f"{path} may only change while the job is suspended: set suspend to true, in an update of its "
            "own or in this one",
            "fieldPath": f".{path}",
            "reason": "FieldValueForbidden",
        }
        for path in frozen_paths(TrainingJobSpec)
    ]
    return never + while_running


def frozen_paths(model: type[BaseModel], *, prefix: str = "") -> Iterator[str]:
    """Paths that may only change while the job is suspended; a new field is one unless it is declared otherwise."""
    exempt = MUTABLE | IMMUTABLE.keys()
    for name, field in model.model_fields.items():
        path = prefix + (field.alias or name)
        if path in exempt:
            continue
        if any(other.startswith(f"{path}.") for other in exempt):
            yield from frozen_paths(_part(model, path.removeprefix(prefix)), prefix=f"{path}.")
        else:
            yield path


def _part(model: type[BaseModel], name: str) -> type[BaseModel]:
    part = next(field.annotation for key, field in model.model_fields.items() if name in (field.alias, key))
    assert isinstance(part, type), f"{name} must be a plain model: a part of it has an update rule of its own"
    assert issubclass(part, BaseModel)
    return part


def _unchanged(path: str) -> str:
    """CEL: equal, or absent on both sides. Not `self.?x == oldSelf.?x`, whose cost the API server cannot bound."""
    *parents, name = path.split(".")
    model: type[BaseModel] = TrainingJobSpec
    for parent in parents:
        model = _part(model, parent)
    now, before = f"self.{path}", f"oldSelf.{path}"
    field = next(field for key, field in model.model_fields.items() if name in (field.alias, key))
    if field.default is not None:  # required, or filled in by the API server: always there
        return f"{now} == {before}"
    return f"has({now}) == has({before}) && (!has({now}) || {now} == {before})"


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def main() -> None:
    """Print a CustomResourceDefinition as YAML."""
    (plural,) = sys.argv[1:]
    source = RESOURCES[plural].model.__module__.replace(".", "/")
    sys.stdout.write(f"# Generated by `make generate` from {source}.py; do not edit.\n")
    definition = custom_resource_definition(plural)
    yaml.dump(definition, sys.stdout, Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)


if __name__ == "__main__":
    main()
