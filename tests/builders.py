"""Small valid objects for tests: a test names only what matters to it.

a_manifest()                                        as a user writes it
a_job(**{"spec.workers": 4})                        dotted paths, or
a_job(spec={"train": {"seed": 1}}, status={...})    nested mappings, merged in
a_manifest(**{"spec.train.steps": REMOVED})         without a field
a_profile(hostNetwork=True)                         the profile `default`, with these fields of its spec
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from steadfast_operator.api.profile import ClusterTrainingProfile
from steadfast_operator.api.types import TrainingJob

REMOVED = object()
"""As an override: the field is left out."""

JOB_UID = "7e1f5a52-0c3e-4c6b-9d52-7a4f4d0c9d11"

_MANIFEST: dict[str, Any] = {
    "apiVersion": "steadfast.dev/v1alpha1",
    "kind": "TrainingJob",
    "metadata": {"name": "moe", "namespace": "research"},
    "spec": {
        "image": "registry.example/steadfast-trainer:1",
        "workers": 2,
        "device": "cpu",
        "model": {"preset": "moe-nano"},
        "train": {"steps": 10, "globalBatchTokens": 256},  # 8 sequences of 32 tokens: 4 for each rank
        "data": {
            "tokenizer": "s3://corpora/python/tokenizer.json",
            "streams": [{"name": "python", "remote": "s3://corpora/python"}],
        },
        "checkpoint": {"destination": "s3://runs"},
    },
}


def a_manifest(**overrides: Any) -> dict[str, Any]:
    """A valid TrainingJob manifest with these overrides; lists and plain values replace, mappings merge."""
    manifest = copy.deepcopy(_MANIFEST)
    for path, value in overrides.items():
        _merge(manifest, _nested(path.split("."), value))
    return manifest


def a_job(**overrides: Any) -> TrainingJob:
    """The manifest as the API server holds it: with a uid, a generation and a creation time."""
    held = {"uid": JOB_UID, "generation": 1, "creationTimestamp": "2026-01-01T00:00:00Z"}
    manifest = a_manifest(metadata=held)
    for path, value in overrides.items():
        _merge(manifest, _nested(path.split("."), value))
    return TrainingJob.model_validate(manifest)


def a_profile(**spec: Any) -> ClusterTrainingProfile:
    """The profile that jobs have which name none."""
    return ClusterTrainingProfile.model_validate({"metadata": {"name": "default"}, "spec": spec})


def _nested(path: list[str], value: Any) -> dict[str, Any]:
    for key in reversed(path):
        value = {key: value}
    return value  # type: ignore[no-any-return]


def _merge(into: dict[str, Any], overrides: Mapping[str, Any]) -> None:
    for key, value in overrides.items():
        if value is REMOVED:
            into.pop(key, None)
        elif isinstance(value, Mapping) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = copy.deepcopy(value) if not isinstance(value, Mapping) else _plain(value)


def _plain(mapping: Mapping[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = {}
    _merge(plain, mapping)
    return plain
