"""What the models of every resource are built of: their base, and types of fields that several of them share."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.alias_generators import to_camel

from steadfast_operator.api.quantities import parse_count, parse_resource

_LABEL = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
DNS_NAME = rf"{_LABEL}(\.{_LABEL})*"
QUALIFIED_NAME = "[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
"""What follows the slash in names of labels, annotations and a vendor's resources."""

Count = Annotated[
    int,
    BeforeValidator(parse_count),
    Field(gt=0, json_schema_extra={"x-steadfast-quantity": True}),
]
"""A positive whole number, written plainly or as a Kubernetes quantity: 4096, 60M, 12T."""

ResourceQuantity = Annotated[
    str,
    BeforeValidator(parse_resource),
    Field(max_length=32, json_schema_extra={"x-steadfast-resource": True}),
]
"""An amount of a resource, as Kubernetes writes it: 96, 500m, 1400Gi."""

DnsName = Annotated[str, Field(min_length=1, max_length=253, pattern=f"^{DNS_NAME}$")]
"""Name of an object of Kubernetes."""

ObjectUri = Annotated[str, Field(max_length=1024, pattern=r"^s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[^\s]*)?$")]
Seconds = Annotated[int, Field(ge=1, le=31_536_000)]


class ApiModel(BaseModel):
    """Written in camelCase, never changed, lenient about unknown fields."""

    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, frozen=True, extra="ignore", use_enum_values=False
    )
