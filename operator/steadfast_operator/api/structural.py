"""From the JSON Schema that pydantic writes to the structural schema that the API server takes; `crd.py` calls it.

What it does not understand it refuses, because a keyword dropped silently is a check lost silently.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
            case "patternProperties":
                ((pattern, part),) = value.items()
                result["additionalProperties"] = to_structural(part, definitions=definitions, path=f"{path}[*]")
                result["x-kubernetes-validations"] = [_name_rule(schema, pattern=pattern, path=path)]
            case "propertyNames" | "x-steadfast-names" if "patternProperties" in schema:
                pass
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


def _name_rule(schema: Schema, *, pattern: str, path: str) -> Schema:
    """What the names of a map must be, for which a structural schema has no keyword."""
    bound, words = schema.get("propertyNames", {}), schema.get("x-steadfast-names")
    if bound.keys() != {"maxLength"} or not words:
        raise ValueError(f"{path}: names of a map need maxLength alone, and x-steadfast-names to describe them")
    return {
        "rule": f"self.all(name, name.size() <= {bound['maxLength']} && name.matches(r'{pattern}'))",
        "message": f"{path.rpartition('.')[2]} holds a name that is no {words}",
    }


def _without_nulls(default: Any) -> Any:
    """A model's default without its unset fields: no field is nullable in the API server."""
    if not isinstance(default, dict):
        return default
    return {name: _without_nulls(value) for name, value in default.items() if value is not None}


def _quantity(schema: Schema, *, nullable: bool, path: str) -> Schema:
    """A count: a number, or a string such as 12T."""
    bounds = [(keyword, value) for keyword, value in schema.items() if (keyword, value) in _QUANTITY_BOUNDS]
    unknown = schema.keys() - {"default", "description", "title", "type"} - {keyword for keyword, _ in bounds}
    if len(bounds) != 1 or unknown or schema.get("type") != "integer":
        raise ValueError(f"{path}: {schema!r} is no count that this understands")
    number, string, words = _QUANTITY_BOUNDS[bounds[0]]
    # isInteger is false of every fraction with a binary suffix, 1.5Ki included: the model looks at those.
    string = f"isQuantity(self) && (self.endsWith('i') || quantity(self).isInteger()) && {string}"
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
                "rule": f"type(self) == int ? {number} : {string}",
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
