"""The CustomResourceDefinition, made from the pydantic models: `python -m steadfast_operator.api.crd` prints it.

`crds/trainingjobs.yaml` is its output. pydantic writes JSON Schema that the API server refuses, so `to_structural`
translates; what it does not understand it refuses too, because a keyword dropped silently is a check lost silently.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any

import yaml
from pydantic import BaseModel

from steadfast_operator.api.types import KIND, TrainingJob, TrainingJobSpec

GROUP = "steadfast.dev"
VERSION = "v1alpha1"
PLURAL = "trainingjobs"

Schema = dict[str, Any]

_KEPT = {
    "description", "enum", "format", "maxItems", "maxLength", "maxProperties", "maximum", "minItems", "minLength",
    "minProperties", "minimum", "pattern", "required", "type", "x-kubernetes-list-map-keys", "x-kubernetes-list-type",
}  # fmt: skip
_TYPES = ("array", "boolean", "integer", "number", "object", "string")
_QUANTITY_PATTERN = r"^[0-9]+(\.[0-9]+)?(k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?$"

_RESOURCE_PATTERN = r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?$"

_POSITIVE = ("self > 0", "quantity(self).isGreaterThan(quantity('0'))", "positive")
_NOT_NEGATIVE = ("self >= 0", "!quantity(self).isLessThan(quantity('0'))", "non-negative")
# pydantic spells a bound behind a BeforeValidator in its own words.
_QUANTITY_BOUNDS = {
    ("exclusiveMinimum", 0): _POSITIVE,
    ("gt", 0): _POSITIVE,
    ("minimum", 0): _NOT_NEGATIVE,
    ("ge", 0): _NOT_NEGATIVE,
}

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

_RULES: dict[str, list[Schema]] = {
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
    "spec.objectStore": [
        {
            "rule": f"!has(self.{name}) || self.{name}.startsWith('steadfast-')",
            "message": f"{name} must begin with steadfast-: a job may use only what was made for such jobs",
            "fieldPath": f".{name}",
        }
        for name in ("credentialsSecret", "serviceAccountName")
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

_COLUMNS: list[Schema] = [
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


def custom_resource_definition() -> Schema:
    """The whole object, ready for `kubectl apply`."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{PLURAL}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "names": {
                "kind": KIND,
                "listKind": f"{KIND}List",
                "plural": PLURAL,
                "singular": KIND.lower(),
                "shortNames": ["tjob"],
            },
            "scope": "Namespaced",
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": _COLUMNS,
                    "schema": {"openAPIV3Schema": _job_schema()},
                }
            ],
        },
    }


def _job_schema() -> Schema:
    written = TrainingJob.model_json_schema(by_alias=True)
    definitions = written["$defs"]
    schema: Schema = {
        "description": written["description"],
        "type": "object",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": to_structural(definitions["TrainingJobSpec"], definitions=definitions, path="spec"),
            "status": to_structural(definitions["TrainingJobStatus"], definitions=definitions, path="status"),
        },
    }
    for path, rules in _RULES.items():
        _at(schema, path).setdefault("x-kubernetes-validations", []).extend(rules)
    schema["properties"]["spec"]["x-kubernetes-validations"].extend(_update_rules())
    return schema


def _at(schema: Schema, path: str) -> Schema:
    for name in path.split(".") if path else ():
        schema = schema["properties"][name]
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


def to_structural(schema: Mapping[str, Any], *, definitions: Mapping[str, Schema], path: str) -> Schema:
    """A structural schema that means the same.

    Raises:
        ValueError: a keyword or form that has no structural counterpart here, or a string, list or map without a
            bound; the message names the path.
    """
    schema, nullable = _inlined(schema, definitions=definitions, path=path)
    if schema.pop("x-steadfast-quantity", False):
        return _quantity(schema, nullable=nullable, path=path)
    if schema.pop("x-steadfast-resource", False):
        return _resource(schema, path=path)
    result: Schema = {}
    for keyword, value in schema.items():
        match keyword:
            case "title":
                pass
            case "default":
                if value is not None:
                    result["default"] = _without_nulls(value)
                elif not nullable:
                    raise ValueError(f"{path}: default is null, but the field is not nullable")
            case "const":
                result["enum"] = [value]
            case "exclusiveMinimum" | "exclusiveMaximum":
                bound = keyword.removeprefix("exclusive").lower()
                if bound in schema:
                    raise ValueError(f"{path}: both {bound} and {keyword}")
                result |= {bound: value, keyword: True}
            case "properties":
                result["properties"] = {
                    name: to_structural(part, definitions=definitions, path=f"{path}.{name}")
                    for name, part in value.items()
                }
            case "items":
                result["items"] = to_structural(value, definitions=definitions, path=f"{path}[]")
            case "additionalProperties" if value is False:
                pass
            case "additionalProperties" if isinstance(value, dict):
                result[keyword] = to_structural(value, definitions=definitions, path=f"{path}[*]")
            case _ if keyword in _KEPT:
                result[keyword] = value
            case _:
                raise ValueError(f"{path}: {keyword}: {value!r} has no structural counterpart here")
    _refuse_unbounded(result, path=path)
    return result


def _inlined(schema: Mapping[str, Any], *, definitions: Mapping[str, Schema], path: str) -> tuple[Schema, bool]:
    """The schema without references and without `null` as an alternative, and whether null was one."""
    result, nullable = dict(schema), False
    while "$ref" in result or "anyOf" in result:
        if reference := result.pop("$ref", None):
            target = definitions[reference.removeprefix("#/$defs/")]
        else:
            alternatives = result.pop("anyOf")
            others = [one for one in alternatives if one != {"type": "null"}]
            if len(others) != 1 or len(alternatives) != 2:
                raise ValueError(f"{path}: anyOf {alternatives!r} is not one type or null")
            target, nullable = others[0], True
        # What stands beside a reference describes this use of it, and wins.
        result = {**target, **result}
    return result, nullable


def _without_nulls(default: Any) -> Any:
    """A model's default without its unset fields: no field is nullable in the API server."""
    if not isinstance(default, dict):
        return default
    return {name: _without_nulls(value) for name, value in default.items() if value is not None}


def _quantity(schema: Schema, *, nullable: bool, path: str) -> Schema:
    """A count: a number, or a string such as 12T. That a string is whole, `quantities.parse_count` checks."""
    bounds = [(keyword, value) for keyword, value in schema.items() if (keyword, value) in _QUANTITY_BOUNDS]
    unknown = schema.keys() - {"default", "description", "title", "type"} - {keyword for keyword, _ in bounds}
    if len(bounds) != 1 or unknown or schema.get("type") != "integer":
        raise ValueError(f"{path}: {schema!r} is no count that this understands")
    number, string, words = _QUANTITY_BOUNDS[bounds[0]]
    result: Schema = {key: schema[key] for key in ("description", "default") if schema.get(key) is not None}
    if "default" in schema.keys() - result.keys() and not nullable:
        raise ValueError(f"{path}: default is null, but the field is not nullable")
    return result | {
        "x-kubernetes-int-or-string": True,
        "anyOf": [{"type": "integer"}, {"type": "string"}],
        "maxLength": 32,
        "pattern": _QUANTITY_PATTERN,
        "x-kubernetes-validations": [
            {
                "rule": f"type(self) == int ? {number} : isQuantity(self) && {string}",
                "message": f"must be a {words} whole number, or a quantity such as 4096, 60M or 12T",
            }
        ],
    }


def _resource(schema: Schema, *, path: str) -> Schema:
    """An amount of a resource: a number, or a string such as 500m or 1400Gi."""
    if schema.keys() - {"description", "title"} != {"type", "maxLength"}:
        raise ValueError(f"{path}: {schema!r} is no amount that this understands")
    return {
        "x-kubernetes-int-or-string": True,
        "anyOf": [{"type": "integer"}, {"type": "string"}],
        "maxLength": schema["maxLength"],
        "pattern": _RESOURCE_PATTERN,
        "x-kubernetes-validations": [
            {
                "rule": f"type(self) == int ? {_POSITIVE[0]} : isQuantity(self) && {_POSITIVE[1]}",
                "message": "must be a positive quantity such as 96, 500m or 1400Gi",
            }
        ],
    }


def _refuse_unbounded(schema: Schema, *, path: str) -> None:
    match schema.get("type"):
        case "string" if not ({"enum", "maxLength"} & schema.keys() or schema.get("format") == "date-time"):
            raise ValueError(f"{path}: a string without maxLength or enum")
        case "array" if "maxItems" not in schema or "items" not in schema:
            raise ValueError(f"{path}: a list without maxItems or items")
        case "object" if "properties" not in schema and not {"additionalProperties", "maxProperties"} <= schema.keys():
            raise ValueError(f"{path}: an object without properties, or a map without value type or maxProperties")
        case kind if kind not in _TYPES:
            raise ValueError(f"{path}: type {kind!r} is no structural type")


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def main() -> None:
    """Print the CustomResourceDefinition as YAML."""
    sys.stdout.write("# Generated by `make generate` from steadfast_operator/api/types.py; do not edit.\n")
    yaml.dump(custom_resource_definition(), sys.stdout, Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)


if __name__ == "__main__":
    main()
