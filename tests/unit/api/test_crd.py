"""The CustomResourceDefinitions, checked by reading it as the API server's documentation says."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel, Field

from steadfast_operator.api.crd import (
    IMMUTABLE,
    MUTABLE,
    PLURAL,
    PROFILES,
    RESOURCES,
    custom_resource_definition,
    frozen_paths,
)
from steadfast_operator.api.structural import to_structural
from steadfast_operator.api.types import TrainingJobSpec

VERSIONS = {plural: custom_resource_definition(plural)["spec"]["versions"][0] for plural in RESOURCES}
ROOTS = {plural: version["schema"]["openAPIV3Schema"] for plural, version in VERSIONS.items()}
ROOT = ROOTS[PLURAL]
SPEC = ROOT["properties"]["spec"]
PROFILE = ROOTS[PROFILES]["properties"]["spec"]["properties"]

KEYWORDS = {
    "additionalProperties", "anyOf", "default", "description", "enum", "exclusiveMaximum", "exclusiveMinimum", "format",
    "items", "maxItems", "maxLength", "maxProperties", "maximum", "minItems", "minLength", "minimum", "pattern",
    "properties", "required", "type", "x-kubernetes-int-or-string", "x-kubernetes-list-map-keys",
    "x-kubernetes-list-type", "x-kubernetes-validations",
}  # fmt: skip


def nodes(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, schema
    for name, part in schema.get("properties", {}).items():
        yield from nodes(part, f"{path}.{name}")
    for keyword in ("items", "additionalProperties"):
        if keyword in schema:
            yield from nodes(schema[keyword], f"{path}[]")


NODES = [pytest.param(schema, id=f"{plural}{path}") for plural, root in ROOTS.items() for path, schema in nodes(root)]


@pytest.mark.parametrize("schema", NODES)
def test_every_node_is_structural(schema: dict[str, Any]) -> None:
    assert schema.keys() <= KEYWORDS
    if schema.get("x-kubernetes-int-or-string"):
        assert "type" not in schema
        assert schema["anyOf"] == [{"type": "integer"}, {"type": "string"}]
    else:
        assert schema["type"] in {"array", "boolean", "integer", "number", "object", "string"}
        assert "anyOf" not in schema
    assert not {"properties", "additionalProperties"} <= schema.keys()
    assert set(schema.get("required", [])) <= schema.get("properties", {}).keys()
    for keyword in ("exclusiveMinimum", "exclusiveMaximum"):
        assert schema.get(keyword, True) is True
        assert keyword not in schema or keyword.removeprefix("exclusive").lower() in schema


@pytest.mark.parametrize("schema", NODES)
def test_every_list_and_string_is_bounded(schema: dict[str, Any]) -> None:
    match schema.get("type"):
        case "array":
            assert schema["maxItems"] <= 256
        case "string" if schema != {"type": "string"}:  # apiVersion and kind
            assert {"maxLength", "enum"} & schema.keys() or schema["format"] == "date-time"
        case "object" if "additionalProperties" in schema:
            assert "maxProperties" in schema


@pytest.mark.parametrize("schema", NODES)
def test_list_maps_have_keys_that_are_required(schema: dict[str, Any]) -> None:
    if schema.get("x-kubernetes-list-type") == "map":
        keys = schema["x-kubernetes-list-map-keys"]
        assert keys
        assert set(keys) <= set(schema["items"]["required"])


@pytest.mark.parametrize("schema", NODES)
def test_defaults_hold_no_null_and_only_known_fields(schema: dict[str, Any]) -> None:
    default = schema.get("default")
    assert not ("default" in schema and default is None)
    if isinstance(default, dict):
        assert None not in default.values()
        assert default.keys() <= schema["properties"].keys()


@pytest.mark.parametrize("schema", NODES)
def test_every_rule_has_a_message_for_people(schema: dict[str, Any]) -> None:
    for rule in schema.get("x-kubernetes-validations", []):
        assert len(rule["message"]) > 20
        assert "\n" not in rule["message"]
        # The API server cannot bound the cost of optional selection, and refuses the whole definition.
        assert ".?" not in rule["rule"]


def test_only_null_alternatives_of_fields_are_dropped() -> None:
    train = SPEC["properties"]["train"]
    assert train["required"] == ["globalBatchTokens"]
    assert "default" not in train["properties"]["tokens"]
    assert SPEC["required"] == ["image", "model", "train", "data", "checkpoint"]


def test_a_count_is_whole() -> None:
    rule = SPEC["properties"]["train"]["properties"]["tokens"]["x-kubernetes-validations"][0]["rule"]
    assert "self.endsWith('i') || quantity(self).isInteger()" in rule


def test_a_count_is_positive_but_a_warmup_may_be_zero() -> None:
    train = SPEC["properties"]["train"]["properties"]
    assert "self > 0" in train["tokens"]["x-kubernetes-validations"][0]["rule"]
    assert "self >= 0" in train["schedule"]["properties"]["warmupTokens"]["x-kubernetes-validations"][0]["rule"]
    assert re.fullmatch(train["tokens"]["pattern"], "12T")
    assert not re.fullmatch(train["tokens"]["pattern"], "12t")


def test_by_class_is_a_typed_map() -> None:
    by_class = ROOT["properties"]["status"]["properties"]["restarts"]["properties"]["byClass"]
    assert by_class["additionalProperties"] == {"type": "integer"}


def test_fields_that_may_only_change_while_suspended() -> None:
    rules = {
        rule.get("fieldPath"): rule["rule"] for rule in SPEC["x-kubernetes-validations"] if "oldSelf" in rule["rule"]
    }
    assert rules[".image"] == "self.suspend || oldSelf.suspend || (self.image == oldSelf.image)"
    assert rules[".ranksPerWorker"] == (
        "self.suspend || oldSelf.suspend || (has(self.ranksPerWorker) == has(oldSelf.ranksPerWorker) && "
        "(!has(self.ranksPerWorker) || self.ranksPerWorker == oldSelf.ranksPerWorker))"
    )
    assert rules[".checkpoint.destination"] == "self.checkpoint.destination == oldSelf.checkpoint.destination"
    assert rules[".runName"].startswith("has(self.runName) == has(oldSelf.runName)")
    assert "suspend" not in rules[".runName"]


def test_every_field_of_the_spec_has_a_rule_unless_it_is_named_mutable() -> None:
    covered = set(frozen_paths(TrainingJobSpec)) | MUTABLE | IMMUTABLE.keys()
    assert {path.partition(".")[0] for path in covered} == SPEC["properties"].keys()
    assert {path for path in covered if path.startswith("checkpoint.")} == {
        f"checkpoint.{name}" for name in SPEC["properties"]["checkpoint"]["properties"]
    }


@pytest.mark.parametrize("plural", RESOURCES)
def test_columns_read_fields_that_exist(plural: str) -> None:
    for column in VERSIONS[plural]["additionalPrinterColumns"]:
        schema = root = ROOTS[plural]
        for name in column["jsonPath"].lstrip(".").split("."):
            if schema is root["properties"]["metadata"]:
                break
            schema = schema["properties"][name]
        else:
            assert schema["type"] == column["type"], column["name"]


def test_a_job_has_a_status_and_a_profile_has_none() -> None:
    assert "status" in VERSIONS[PLURAL]["subresources"]
    assert "subresources" not in VERSIONS[PROFILES]
    assert "status" not in ROOTS[PROFILES]["properties"]


def test_a_profile_belongs_to_the_cluster_and_a_job_to_a_namespace() -> None:
    scopes = {plural: custom_resource_definition(plural)["spec"]["scope"] for plural in RESOURCES}
    assert scopes == {PLURAL: "Namespaced", PROFILES: "Cluster"}


@pytest.mark.parametrize(
    ("field", "good", "bad"),
    [
        ("nodeSelector", ["zone", "topology.kubernetes.io/zone"], ["a/b/c", "-a", "A.io/b", ""]),
        ("annotations", ["k8s.v1.cni.cncf.io/networks"], ["a b", "/a"]),
        ("environment", ["NCCL_IB_HCA", "_x"], ["1A", "A-B", "A B", ""]),
        ("workerResources", ["rdma/hca", "vpc.amazonaws.com/efa", "hugepages-2Mi"], ["cpu", "memory", "hca"]),
    ],
)
def test_the_names_in_a_map_of_a_profile_have_a_form(field: str, good: list[str], bad: list[str]) -> None:
    rule = PROFILE[field]["x-kubernetes-validations"][0]["rule"]
    pattern = rule.partition("name.matches(r'")[2].removesuffix("'))")
    assert [name for name in good + bad if re.search(pattern, name)] == good


def test_limits_of_ceilings_are_of_resources_that_exist() -> None:
    rule = PROFILE["ceilings"]["properties"]["limits"]["x-kubernetes-validations"][0]["rule"]
    pattern = rule.partition("name.matches(r'")[2].removesuffix("'))")
    found = [name for name in ("cpu", "memory", "ephemeral-storage", "rdma/hca", "cpus") if re.search(pattern, name)]
    assert found == ["cpu", "memory", "ephemeral-storage", "rdma/hca"]


class _Nested(BaseModel):
    """Inner."""

    kind: str = Field(max_length=3)


class _Sample(BaseModel):
    nested: _Nested | None = Field(default=None, description="Outer.")
    below: float = Field(lt=1)


def test_references_are_inlined_and_their_use_describes_them() -> None:
    schema = _Sample.model_json_schema()
    definitions = schema.pop("$defs")
    assert to_structural(schema, definitions=definitions, path="sample") == {
        "type": "object",
        "required": ["below"],
        "properties": {
            "nested": {
                "type": "object",
                "description": "Outer.",
                "required": ["kind"],
                "properties": {"kind": {"type": "string", "maxLength": 3}},
            },
            "below": {"type": "number", "maximum": 1, "exclusiveMaximum": True},
        },
    }


def test_a_constant_is_an_enum_of_one() -> None:
    written = {"const": "a", "type": "string", "title": "A"}
    assert to_structural(written, definitions={}, path="x") == {"enum": ["a"], "type": "string"}


@pytest.mark.parametrize(
    ("written", "message"),
    [
        pytest.param({"type": "string"}, "without maxLength", id="a string without a bound"),
        pytest.param({"type": "array", "items": {"type": "integer"}}, "without maxItems", id="a list without a bound"),
        pytest.param({"type": "array", "maxItems": 3}, "without maxItems or items", id="a list of anything"),
        pytest.param({"type": "object"}, "without properties", id="an object of anything"),
        pytest.param(
            {"type": "object", "additionalProperties": {"type": "integer"}}, "maxProperties", id="a map without a bound"
        ),
        pytest.param(
            {"type": "object", "maxProperties": 3, "patternProperties": {"^a$": {"type": "integer"}}},
            "names of a map need maxLength",
            id="names without a bound",
        ),
        pytest.param(
            {
                "type": "object",
                "maxProperties": 3,
                "patternProperties": {"^a$": {"type": "integer"}},
                "propertyNames": {"maxLength": 1},
            },
            "x-steadfast-names to describe them",
            id="names without words",
        ),
        pytest.param({"type": "object", "additionalProperties": True}, "additionalProperties", id="an open object"),
        pytest.param({}, "type None", id="anything"),
        pytest.param({"type": ["integer", "string"]}, "is no structural type", id="a list of types"),
        pytest.param({"anyOf": [{"type": "integer"}, {"type": "boolean"}]}, "not one type or null", id="a union"),
        pytest.param({"type": "integer", "default": None}, "default is null", id="a null that is not allowed"),
        pytest.param({"type": "integer", "minimum": 1, "exclusiveMinimum": 0}, "both minimum", id="two lower bounds"),
        pytest.param({"type": "integer", "multipleOf": 2}, "multipleOf", id="a keyword that it does not know"),
        pytest.param({"type": "array", "maxItems": 1, "prefixItems": []}, "prefixItems", id="a tuple"),
        pytest.param({"type": "integer", "x-steadfast-quantity": True}, "no count", id="a count without a bound"),
        pytest.param(
            {"type": "integer", "gt": 0, "maximum": 5, "x-steadfast-quantity": True}, "no count", id="a bounded count"
        ),
        pytest.param(
            {"type": "integer", "gt": 0, "default": None, "x-steadfast-quantity": True},
            "default is null",
            id="a null count",
        ),
    ],
)
def test_what_has_no_structural_form_is_refused(written: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as refusal:
        to_structural(written, definitions={}, path="spec.field")
    assert str(refusal.value).startswith("spec.field")
