"""Our reader and mosaicml-streaming's reader see the same samples in the folder that its writer wrote."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from steadfast_trainer.data.dataset import (
    COLUMN,
    INDEX,
    FormatError,
    StreamManifest,
    parse_index,
    sha256_of,
    view_samples,
)

LENGTH = 16


def make_manifest(**changes):
    defaults = {
        "tokenizer_sha256": "0" * 64,
        "vocabulary_size": 4096,
        "sequence_length": LENGTH,
        "samples": 100,
        "tokens": 100 * LENGTH,
        "index_sha256": "0" * 64,
        "sources": (),
    }
    return StreamManifest(**defaults | changes)


def write_folder(folder, manifest, *, samples):
    from streaming import MDSWriter

    with MDSWriter(
        columns={COLUMN: manifest.encoding}, out=str(folder), hashes=["sha256"], size_limit=1 << 10
    ) as writer:
        for sample in samples:
            writer.write({COLUMN: sample})
    return json.loads((folder / INDEX).read_text())


def random_samples(manifest):
    random = np.random.default_rng(3)
    shape = (manifest.samples, manifest.sequence_length + 1)
    return random.integers(manifest.vocabulary_size, size=shape).astype(manifest.token_type)


@pytest.mark.parametrize(
    ("vocabulary_size", "token_type"),
    [(4096, "uint16"), (1 << 16, "uint16"), ((1 << 16) + 1, "uint32"), (100_352, "uint32")],
)
def test_both_readers_see_what_the_writer_wrote(tmp_path, vocabulary_size, token_type):
    from streaming.base.format.mds.reader import MDSReader

    manifest = make_manifest(vocabulary_size=vocabulary_size)
    written = random_samples(manifest)
    index = write_folder(tmp_path, manifest, samples=written)
    shards = parse_index((tmp_path / INDEX).read_bytes(), manifest=manifest)

    ours, theirs = [], []
    for shard, entry in zip(shards, index["shards"], strict=True):
        data = np.memmap(tmp_path / shard.name, dtype=np.uint8, mode="r")
        assert sha256_of(data.tobytes()) == shard.sha256
        ours += list(view_samples(data, shard=shard, manifest=manifest))
        reader = MDSReader.from_json(str(tmp_path), "", entry)
        theirs += [reader[number][COLUMN] for number in range(len(reader))]
    assert len(shards) > 3
    assert ours[0].dtype == token_type
    assert np.array_equal(ours, written)
    assert np.array_equal(theirs, written)


def test_the_writer_loads_without_the_rest_of_its_package():
    program = """
import sys
from steadfast_trainer.data.prepare import _import_writer
writer = _import_writer()
assert "transformers" not in sys.modules, "the whole package was loaded"
assert "streaming" not in sys.modules, "a bare package was left behind"
import streaming
assert streaming.MDSWriter is writer
"""
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, timeout=120)


def test_reading_loads_neither_streaming_nor_torch_and_starts_no_thread():
    program = """
import os, sys
import steadfast_trainer.data.streams
assert not {"streaming", "transformers", "torch", "boto3"} & set(sys.modules)
assert len(os.listdir("/proc/self/task")) == 1
"""
    env = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, timeout=60, env=env)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mds")
    manifest = make_manifest()
    write_folder(folder, manifest, samples=random_samples(manifest))
    return folder


def change_index(folder, **changes):
    index = json.loads((folder / INDEX).read_text())
    index["shards"][1].update(changes)
    return json.dumps(index).encode()


def raw(**changes):
    return {"raw_data": {"basename": "shard.00001.mds", "bytes": 100, "hashes": {"sha256": "0" * 64}} | changes}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"column_encodings": ["pkl"]}, "'pkl'"),
        ({"column_encodings": ["ndarray"]}, "'ndarray'"),
        ({"column_encodings": ["ndarray:uint32:17"]}, "'ndarray:uint32:17'"),
        ({"column_names": ["text"]}, "'text'"),
        ({"column_names": ["tokens", "x"], "column_encodings": ["ndarray:uint16:17", "pkl"]}, "'pkl'"),
        ({"column_sizes": [None]}, "None"),
        ({"compression": "zstd"}, "uncompressed"),
        ({"format": "json"}, "uncompressed MDS"),
        ({"samples": 0}, "0 samples"),
        ({"samples": 1}, "samples in the index, 100 in steadfast.json"),
        (raw(basename="../../etc/passwd"), "named '../../etc/passwd'"),
        (raw(basename="shard.00000.mds"), "same name"),
        (raw(hashes={}), "no sha256"),
        (raw(hashes={"sha256": "beef"}), "no sha256"),
        (raw(bytes=0), "no size"),
        ({"raw_data": None}, "not an MDS index"),
    ],
)
def test_an_index_that_is_not_ours_is_refused(folder, changes, message):
    with pytest.raises(FormatError, match=message):
        parse_index(change_index(folder, **changes), manifest=make_manifest())


@pytest.mark.parametrize("text", [b"", b"[]", b"{}", b"\xff", b'{"version": 3, "shards": []}', b'{"version": 2}'])
def test_what_is_no_index_is_refused(text):
    with pytest.raises(FormatError):
        parse_index(text, manifest=make_manifest())


def test_a_shard_whose_offsets_lie_is_refused(folder):
    manifest = make_manifest()
    shard = parse_index((folder / INDEX).read_bytes(), manifest=manifest)[0]
    data = np.fromfile(folder / shard.name, dtype=np.uint8)
    for position in (0, 4, 8):
        changed = data.copy()
        changed[position] ^= 2
        with pytest.raises(FormatError, match="does not hold"):
            view_samples(changed, shard=shard, manifest=manifest)
    with pytest.raises(FormatError, match="bytes"):
        view_samples(data[:-1], shard=shard, manifest=manifest)
    with pytest.raises(FormatError, match="bytes"):
        view_samples(data, shard=replace(shard, samples=10**6), manifest=manifest)


def test_a_token_outside_the_vocabulary_is_refused(folder):
    manifest = make_manifest()
    shard = parse_index((folder / INDEX).read_bytes(), manifest=manifest)[0]
    data = np.fromfile(folder / shard.name, dtype=np.uint8)
    largest = int(view_samples(data, shard=shard, manifest=manifest).max())
    view_samples(data, shard=shard, manifest=make_manifest(vocabulary_size=largest + 1))
    with pytest.raises(FormatError, match=f"holds token {largest}"):
        view_samples(data, shard=shard, manifest=make_manifest(vocabulary_size=largest))


def test_a_manifest_survives_its_encoding():
    manifest = make_manifest()
    assert StreamManifest.from_json(manifest.to_json()) == manifest


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, "format version 2"),
        ({"samples": "many"}, "samples is 'many'"),
        ({"sequence_length": 0}, "sequence_length is 0"),
        ({"index_sha256": "../.."}, "index_sha256"),
        ({"sources": None}, "not a stream manifest"),
    ],
)
def test_a_wrong_manifest_is_refused(changes, message):
    text = json.dumps(json.loads(make_manifest().to_json()) | changes).encode()
    with pytest.raises(FormatError, match=message):
        StreamManifest.from_json(text)
