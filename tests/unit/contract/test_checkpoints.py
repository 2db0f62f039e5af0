"""Documents of a run: round trips, newer and foreign versions, names that sort by step."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steadfast_contract.checkpoints import Latest, Lease, Manifest, Shard, checkpoint_folder, manifest_key, shard_key

LATEST = Latest(owner="u", attempt=3, nonce="n", step=120, manifest="step/manifest.json", attempts_before=2)
LEASE = Lease(owner="u", job="team/moe", beat=9)
SHARD = Shard(key="step/rank.safetensors", size=5, sha256="ab", tensors=("a", "b"))
MANIFEST = Manifest(
    step=120,
    attempt=3,
    owner="u",
    nonce="n",
    parent=None,
    created="2026-01-01T00:00:00+00:00",
    world_size=2,
    model={"layers": 2},
    data={"seed": 17, "samples": 960},
    samples={"0": "d", "1": "e"},
    shards=(SHARD, replace(SHARD, key="other", tensors=())),
    libraries={"torch": "2.15"},
)
DOCUMENTS = pytest.mark.parametrize("document", [LATEST, LEASE, MANIFEST], ids=["latest", "lease", "manifest"])


@DOCUMENTS
def test_a_document_round_trips(document):
    assert type(document).from_json(document.to_json()) == document


@DOCUMENTS
def test_unknown_fields_are_dropped(document):
    data = json.loads(document.to_json()) | {"colour": "red"}
    for shard in data.get("shards", ()):
        shard["colour"] = "red"
    assert type(document).from_json(json.dumps(data).encode()) == document


@DOCUMENTS
@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_another_format_version_is_refused_by_its_number(document, version):
    data = {"version": version}  # a newer document may lack what ours needs
    with pytest.raises(ValueError, match=f"has format version {version}, not 1"):
        type(document).from_json(json.dumps(data).encode())


@DOCUMENTS
def test_a_missing_field_is_refused(document):
    optional = {"released", "attempts_before"}
    for name in set(json.loads(document.to_json())) - optional:
        data = {key: value for key, value in json.loads(document.to_json()).items() if key != name}
        with pytest.raises(ValueError, match=f"not a {type(document).__name__}"):
            type(document).from_json(json.dumps(data).encode())


@DOCUMENTS
@pytest.mark.parametrize("text", [b"", b"[]", b"null", b"7", b"\xff\xfe", b"{", b"{}"], ids=repr)
def test_other_bytes_are_refused(document, text):
    with pytest.raises(ValueError, match=f"not a {type(document).__name__}"):
        type(document).from_json(text)


@pytest.mark.parametrize("shards", [None, 7, [7], [{}], [{"key": "k", "tensors": ["a"]}], [{"tensors": 5}]], ids=repr)
def test_malformed_shards_are_refused(shards):
    data = json.loads(MANIFEST.to_json()) | {"shards": shards}
    with pytest.raises(ValueError, match="not a Manifest"):
        Manifest.from_json(json.dumps(data).encode())


def test_a_latest_of_the_first_release_counts_no_earlier_attempts():
    data = json.loads(LATEST.to_json())
    del data["attempts_before"], data["released"]
    assert Latest.from_json(json.dumps(data).encode()) == replace(LATEST, attempts_before=0, released=False)


PLACES = st.tuples(st.integers(0, 10**12 - 1), st.integers(0, 10**6 - 1))


@given(st.lists(PLACES))
def test_keys_sort_by_step_then_attempt(places):
    keys = [manifest_key(step=step, attempt=attempt) for step, attempt in sorted(places)]
    assert keys == sorted(keys)


def test_names_are_a_frozen_surface():
    assert checkpoint_folder(step=120, attempt=3) == "step-000000000120/attempt-000003"
    assert manifest_key(step=120, attempt=3) == "step-000000000120/attempt-000003/manifest.json"
    key = shard_key(step=120, attempt=3, rank=0, world_size=4)
    assert key == "step-000000000120/attempt-000003/rank-00000-of-00004.safetensors"
