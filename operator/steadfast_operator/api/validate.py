"""Strict validation of a TrainingJob without a cluster: every problem at once, each with what to do about it.

`steadfast validate` and `steadfast run` read manifests through `validate_manifest`. The operator calls
`cross_field_problems` on what the API server let through, for the condition Accepted=False.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from steadfast_operator.api.crossfield import cross_field_problems
from steadfast_operator.api.manifest import Document, Location, ManifestError, path_of, read_documents
from steadfast_operator.api.problems import Problem
from steadfast_operator.api.types import API_VERSION, KIND, TrainingJob

__all__ = ["NOT_YET", "Problem", "cross_field_problems", "validate_manifest"]

NOT_YET = {
    "spec": (
        "spares", "parallelism", "initFrom", "evaluation", "tracking", "command", "queueName",
        "priorityClassName", "gang", "topology",
    ),
    "spec.model": ("sharedExperts",),
    "spec.precision": ("experts",),
    "spec.train.optimizer": ("name",),
    "spec.data": ("curriculum",),
    "spec.data.streams": ("proportion", "repeat"),
    "spec.checkpoint": ("keepLast", "keepEverySteps", "memory"),
    "spec.faultTolerance": ("heartbeatTimeoutSeconds", "quarantineSeconds", "allowShrinkTo", "rules"),
    "spec.faultTolerance.hang": ("floorSeconds", "factor"),
}  # fmt: skip
"""Fields of the whole design that this version lacks: refused by name, never accepted and ignored."""

_METADATA = (
    "annotations", "creationTimestamp", "deletionGracePeriodSeconds", "deletionTimestamp", "finalizers", "generateName",
    "generation", "labels", "managedFields", "name", "namespace", "ownerReferences", "resourceVersion", "selfLink",
    "uid",
)  # fmt: skip

_PATTERNS = {
    "metadata.name": "lowercase letters, digits and '-', with a letter or digit at both ends",
    "spec.runName": "letters, digits, '.', '_', '-' and '/', with a letter or digit at both ends",
    "spec.image": "an image reference without spaces, such as registry.example/steadfast-trainer:1",
    "spec.data.tokenizer": "s3://bucket/path/tokenizer.json",
    "spec.data.streams.name": "lowercase letters, digits and '-', with a letter or digit at both ends",
    "spec.data.streams.remote": "s3://bucket/path",
    "spec.checkpoint.destination": "s3://bucket or s3://bucket/path",
    "spec.objectStore.endpoint": "a URL without a path, such as https://s3.example:9000",
    "spec.objectStore.region": "lowercase letters, digits and '-', such as eu-central-1",
    "spec.objectStore.credentialsSecret": "the name of a secret, such as steadfast-s3",
    "spec.objectStore.serviceAccountName": "the name of a service account, such as steadfast-trainer",
    "spec.profile": "the name of a ClusterTrainingProfile, such as default",
}
"""What a refused string should look like, by path."""

_PLACEHOLDERS: dict[str, Any] = {
    "metadata": {"name": "placeholder"},
    "spec": {
        "image": "placeholder",
        "model": {"preset": "moe-nano"},
        "train": {"steps": 1, "globalBatchTokens": 1},
        "data": {"tokenizer": "s3://placeholder", "streams": [{"name": "placeholder", "remote": "s3://placeholder"}]},
        "checkpoint": {"destination": "s3://placeholder"},
    },
}


def validate_manifest(text: str, *, source: str) -> tuple[TrainingJob | None, list[Problem]]:
    """The job that a manifest describes, if it has no problems; otherwise all of them, in the manifest's order.

    `source` is the file's name, for the problems. A status, as `kubectl get -o yaml` prints it, is left out.
    """
    try:
        documents = read_documents(text)
    except ManifestError as error:
        problem = Problem(path="", what=error.what, remedy=error.remedy, source=source, line=error.line)
        return None, [problem]
    if len(documents) != 1:
        what = f"the file holds {len(documents)} documents" if documents else "the file is empty"
        line = documents[1].line(()) if documents else None
        remedy = "Write one TrainingJob, in a file of its own"
        return None, [Problem(path="", what=what, remedy=remedy, source=source, line=line)]
    job, problems = _validate_document(documents[0])
    located = [replace(problem, source=source, line=_line(documents[0], problem)) for problem in problems]
    return job, sorted(located, key=lambda problem: problem.line or 0)


def _line(document: Document, problem: Problem) -> int | None:
    location = [int(part) if part.isdigit() else part for part in re.findall(r"[^.\[\]]+", problem.path)]
    return problem.line or document.line(tuple(location))


def _validate_document(document: Document) -> tuple[TrainingJob | None, list[Problem]]:
    content = document.content
    if not isinstance(content, dict):
        what = f"{_shown(content)} is no manifest"
        return None, [Problem(path="", what=what, remedy="Write a mapping with apiVersion, kind, metadata and spec")]
    problems = list(_identity_problems(content))
    if len(problems) == 2:
        return None, problems
    content = {key: value for key, value in content.items() if key != "status"}
    problems += document.faults
    problems += _unknown_fields(content, model=TrainingJob, path="")
    problems += _metadata_problems(content.get("metadata"))
    job, broken, refused = _parse(content)
    problems += [problem for problem in refused if problem.path not in {fault.path for fault in document.faults}]
    if job is not None:
        problems += cross_field_problems(job, ignoring=broken)
    return (job, []) if not problems else (None, problems)


def _identity_problems(content: Mapping[str, Any]) -> Iterator[Problem]:
    for field, expected in (("apiVersion", API_VERSION), ("kind", KIND)):
        if field not in content:
            yield Problem(path=field, what="is missing", remedy=f"Add {field}: {expected}")
        elif content[field] != expected:
            yield Problem(path=field, what=f"{_shown(content[field])} is not {expected}", remedy=f"Write {expected}")


def _unknown_fields(content: Any, *, model: type[BaseModel], path: str) -> Iterator[Problem]:
    if not isinstance(content, dict):
        return
    known = {field.alias or name: field for name, field in model.model_fields.items()}
    names = _METADATA if path == "metadata" else tuple(known)
    for name, value in content.items():
        here = f"{path}.{name}".lstrip(".")
        if name not in names:
            yield _unknown_field(name, path=here, names=names)
        elif name in known and (submodel := _submodel(known[name])):
            if isinstance(value, list):
                for index, item in enumerate(value):
                    yield from _unknown_fields(item, model=submodel, path=f"{here}[{index}]")
            else:
                yield from _unknown_fields(value, model=submodel, path=here)


def _unknown_field(name: str, *, path: str, names: Sequence[str]) -> Problem:
    parent = re.sub(r"\[\d+\]", "", path).rpartition(".")[0]
    if name in NOT_YET.get(parent, ()):
        return Problem(path=path, what="is not supported by this version of Steadfast", remedy="Remove it")
    folded = {known.lower(): known for known in names}
    close = difflib.get_close_matches(name.replace("_", "").lower(), folded, n=1)
    remedy = f"Did you mean {folded[close[0]]}?" if close else f"Remove it; known here: {', '.join(names)}"
    return Problem(path=path, what="is no field of a TrainingJob", remedy=remedy)


def _submodel(field: FieldInfo) -> type[BaseModel] | None:
    candidates = [field.annotation, *get_args(field.annotation)]
    return next((one for one in candidates if isinstance(one, type) and issubclass(one, BaseModel)), None)


def _metadata_problems(metadata: Any) -> Iterator[Problem]:
    for name in ("labels", "annotations"):
        values = metadata.get(name) if isinstance(metadata, dict) else None
        for key, value in values.items() if isinstance(values, dict) else ():
            if not isinstance(value, str):
                what = f"{key} is {_shown(value)}, not a string"
                yield Problem(path=f"metadata.{name}", what=what, remedy=f'Quote it: {key}: "{value}"')


def _parse(content: Mapping[str, Any]) -> tuple[TrainingJob | None, frozenset[str], list[Problem]]:
    """The job, the paths that it has only placeholders for, and why."""
    try:
        return _strictly(content), frozenset(), []
    except ValidationError as error:
        details = error.errors(include_url=False)
    repaired = json.loads(json.dumps(content))
    for detail in details:
        _repair(repaired, detail["loc"])
    try:
        job = _strictly(repaired)
    except ValidationError:
        job = None
    return job, frozenset(path_of(detail["loc"]) for detail in details), [_refusal(detail) for detail in details]


def _strictly(content: Mapping[str, Any]) -> TrainingJob:
    # Through JSON, as the API server reads it: no "2" for 2, but names for enums.
    return TrainingJob.model_validate_json(json.dumps(content), strict=True)


def _repair(content: Any, location: Location) -> None:
    """Replace what is wrong by a placeholder, or by nothing, so that everything else can still be checked."""
    placeholder: Any = _PLACEHOLDERS
    for part in location[:-1]:
        content = content[part]
        placeholder = _step_into(placeholder, part)
    last = location[-1]
    placeholder = _step_into(placeholder, last)
    if placeholder is not None:
        content[last] = placeholder
    elif isinstance(content, dict):
        content.pop(last, None)


def _step_into(placeholder: Any, part: str | int) -> Any:
    if isinstance(placeholder, list):
        return placeholder[0]
    return placeholder.get(part) if isinstance(placeholder, dict) else None


def _refusal(detail: ErrorDetails) -> Problem:
    path, value, context = path_of(detail["loc"]), detail["input"], detail.get("ctx", {})
    if path == "spec.data.streams" and detail["type"] == "too_long":
        what, remedy = f"holds {len(value)} streams, and this version supports one", "Keep one stream"
    elif detail["type"] == "missing":
        what, remedy = "is missing", "Add it"
    elif detail["type"] in _EXPECTED:
        what, remedy = f"{_shown(value)} is not {_EXPECTED[detail['type']]}", f"Write {_EXPECTED[detail['type']]}"
    elif detail["type"] in _BOUNDS:
        words, key = _BOUNDS[detail["type"]]
        what = f"{_shown(value)} is not {words} {context[key]}"
        remedy = f"Write a number that is {words} {context[key]}"
    elif detail["type"] == "enum":
        what, remedy = _wrong_choice(path, value, choices=re.findall(r"'([^']*)'", str(context["expected"])))
    elif detail["type"] == "string_pattern_mismatch":
        expected = _PATTERNS.get(re.sub(r"\[\d+\]", "", path), f"text that matches {context['pattern']}")
        what, remedy = f"{_shown(value)} does not have the right form", f"Write {expected}"
    elif detail["type"] in _LENGTHS:
        words, key = _LENGTHS[detail["type"]]
        what, remedy = f"{_shown(value)} is {words} than {context[key]}", "Change its length"
    elif detail["type"] == "value_error":
        what, _, remedy = str(context["error"]).partition(": ")
        remedy = f"{remedy[:1].upper()}{remedy[1:]}" or "Write a whole number"
    else:
        what, remedy = f"{_shown(value)}: {detail['msg']}", "Correct it"
    return Problem(path=path, what=what, remedy=remedy)


_EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "a string",
    "list_type": "a list",
    "model_type": "a mapping of fields",
    "model_attributes_type": "a mapping of fields",
}
_BOUNDS = {
    "greater_than": ("above", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("below", "lt"),
    "less_than_equal": ("at most", "le"),
}
_LENGTHS = {
    "string_too_short": ("shorter", "min_length"),
    "string_too_long": ("longer", "max_length"),
    "too_short": ("shorter", "min_length"),
    "too_long": ("longer", "max_length"),
}
_CHOICES_NOT_YET = {
    "spec.precision.recipe": lambda value: value in ("fp8-rowwise", "fp8-blockwise"),
    "spec.checkpoint.resume": lambda value: isinstance(value, str) and value.startswith(("s3://", "step-")),
}


def _wrong_choice(path: str, value: Any, *, choices: Sequence[str]) -> tuple[str, str]:
    listed = ", ".join(choices)
    if path in _CHOICES_NOT_YET and _CHOICES_NOT_YET[path](value):
        return f"{_shown(value)} is not supported by this version of Steadfast", f"Write one of {listed}"
    close = difflib.get_close_matches(str(value).lower(), choices, n=1)
    return f"{_shown(value)} is none of {listed}", f"Did you mean {close[0]}?" if close else f"Write one of {listed}"


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False) if not isinstance(value, str) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
