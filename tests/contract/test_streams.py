"""Preparing and reading streams on a real S3 server."""

import gzip
import json
from itertools import count, pairwise

import numpy as np
import pytest
import tokenizers

from steadfast_contract.exits import ExitCode
from steadfast_trainer.checkpoint.store import ObjectStore, StoreDenied, StoreError
from steadfast_trainer.data import prepare, streams
from steadfast_trainer.data.dataset import INDEX, MANIFEST, TOKENIZER, Source, StreamManifest, sha256_of
from steadfast_trainer.data.order import sample_at
from steadfast_trainer.data.prepare import END_OF_TEXT
from steadfast_trainer.data.streams import BatchLoader, DataError, open_stream

LENGTH = 32
VOCABULARY = 300
TEXTS = {
    "b/late.md": "Zeta. " * 300,
    "a.py": "def first():\n    return 1\n" * 200,
    "notes.txt": f"This text quotes {END_OF_TEXT} and goes on. ünï " * 100,
    "blob.py": "\0binary",
    "picture.png": "not read",
    ".hidden/secret.txt": "not read",
}
DOCUMENTS = [TEXTS["a.py"], TEXTS["b/late.md"], TEXTS["notes.txt"], "packed " * 200]
prefixes = (f"streams/{number}" for number in count())


@pytest.fixture(scope="module", autouse=True)
def _small_shards():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "SHARD_BYTES", 2048)
        patch.setattr(prepare, "_ENCODED_AT_ONCE", 1000)
        yield


@pytest.fixture(scope="module")
def env(embedded_store):
    return dict(embedded_store.environment)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    for name, text in TEXTS.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    (folder / "z.1.gz").write_bytes(gzip.compress(DOCUMENTS[-1].encode()))
    (folder / "link.txt").symlink_to(folder / "notes.txt")
    return folder


@pytest.fixture
def run(env, corpus, capsys, monkeypatch):
    """`python -m steadfast_trainer.data.prepare` in this process: exit code, stdout, stderr."""

    def run(out, *more, source=corpus, tokenizer=f"train:{VOCABULARY}", length=LENGTH, environment=env):
        for name in [*env, "AWS_SESSION_TOKEN"]:
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        arguments = [str(source), f"--out={out}", f"--tokenizer={tokenizer}", f"--sequence-length={length}", *more]
        code = prepare.main(arguments)
        return code, *capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def prepared(env, corpus):
    """A stream that tests only read."""
    remote = f"s3://corpora/{next(prefixes)}"
    prepare.prepare(options(remote, corpus), env=env)
    return remote


@pytest.fixture
def spoilt(env, corpus):
    """A stream of a test's own, and its store."""
    remote = f"s3://corpora/{next(prefixes)}"
    prepare.prepare(options(remote, corpus), env=env)
    return remote, ObjectStore(remote, env=env)


def options(remote, source):
    return prepare.Options(sources=(str(source),), out=remote, tokenizer=f"train:{VOCABULARY}", sequence_length=LENGTH)


@pytest.fixture
def reader(env, tmp_path):
    def reader(remote, *, tokenizer=None, context_length=LENGTH, vocabulary_size=VOCABULARY, environment=env):
        return open_stream(
            remote,
            tokenizer=tokenizer or f"{remote}/{TOKENIZER}",
            context_length=context_length,
            vocabulary_size=vocabulary_size,
            cache=tmp_path / "cache",
            env=environment,
        )

    return reader


def rewrite(store, *, index=None, **manifest):
    """Replace the index, and make the manifest vouch for it, as an attacker or a mistaken tool would."""
    if index is not None:
        store.put(INDEX, index)
        manifest["index_sha256"] = sha256_of(index)
    store.put(MANIFEST, json.dumps(json.loads(store.get(MANIFEST)) | manifest).encode())


def shards_of(store):
    return [shard["raw_data"]["basename"] for shard in json.loads(store.get(INDEX))["shards"]]


# Preparing


def test_every_token_is_predicted_exactly_once(env, prepared, reader):
    store = ObjectStore(prepared, env=env)
    tokenizer = tokenizers.Tokenizer.from_str(store.get(TOKENIZER).decode())
    stream = reader(prepared)
    samples = [stream.read(index) for index in range(stream.size)]
    assert all(np.array_equal(left[-1:], right[:1]) for left, right in pairwise(samples))

    tokens = np.concatenate([samples[0][:1], *(sample[1:] for sample in samples)])
    expected = []
    end = tokenizer.token_to_id(END_OF_TEXT)
    tokenizer.encode_special_tokens = True
    for text in DOCUMENTS:
        expected += [*tokenizer.encode(text).ids, end]
    assert tokens.tolist() == expected[: len(tokens)]
    assert len(expected) - len(tokens) < LENGTH
    assert (tokens == end).sum() >= 3
    assert len(shards_of(store)) > 2


def test_the_manifest_says_what_the_stream_holds(env, corpus, prepared, reader):
    store = ObjectStore(prepared, env=env)
    stream = reader(prepared)
    assert StreamManifest.from_json(store.get(MANIFEST)) == StreamManifest(
        tokenizer_sha256=sha256_of(store.get(TOKENIZER)),
        vocabulary_size=VOCABULARY,
        sequence_length=LENGTH,
        samples=stream.size,
        tokens=stream.size * LENGTH,
        index_sha256=sha256_of(store.get(INDEX)),
        sources=(Source(name=str(corpus), documents=4, bytes=sum(len(text.encode()) for text in DOCUMENTS)),),
    )
    assert stream.digest == sha256_of(store.get(INDEX))
    assert stream.tokenizer_digest == sha256_of(store.get(TOKENIZER))


def test_preparing_again_changes_nothing_and_says_so(env, prepared, run):
    store = ObjectStore(prepared, env=env)
    before = {key: store.get_tagged(key) for key in store.list()}
    code, out, _ = run(prepared)
    assert (code, out.count("\n")) == (ExitCode.DONE, 1)
    assert f"{prepared} already holds this stream: 4 documents, " in out
    assert {key: store.get_tagged(key) for key in store.list()} == before


def test_another_stream_is_replaced_only_on_request(spoilt, run, reader):
    remote, _ = spoilt
    code, _, err = run(remote, length=16)
    assert code == ExitCode.DATA
    assert f"{remote} holds another stream" in err
    assert "--overwrite" in err
    assert reader(remote).size
    assert run(remote, "--overwrite", length=16)[0] == ExitCode.DONE
    assert reader(remote, context_length=16).read(0).shape == (17,)


def test_foreign_shards_are_not_overwritten(env, run):
    remote = f"s3://corpora/{next(prefixes)}"
    ObjectStore(remote, env=env).put(INDEX, b'{"version": 2, "shards": []}')
    code, _, err = run(remote)
    assert code == ExitCode.DATA
    assert "written by something else" in err


def test_an_interrupted_upload_is_finished(spoilt, run, reader):
    remote, store = spoilt
    store.delete(MANIFEST)
    store.delete(shards_of(store)[0])
    assert run(remote)[0] == ExitCode.DONE
    stream = reader(remote)
    assert stream.read(stream.size - 1).shape == (LENGTH + 1,)


def test_a_stream_ends_at_the_most_tokens(run, reader):
    remote = f"s3://corpora/{next(prefixes)}"
    code, out, _ = run(remote, "--max-tokens=100")
    assert code == ExitCode.DONE
    assert "96 tokens, 3 samples, 1 shards" in out
    assert reader(remote).size == 3


@pytest.mark.parametrize("where", ["bucket", "file"])
def test_a_tokenizer_is_taken_over_byte_for_byte(env, tmp_path, prepared, run, reader, where):
    tokenizer = f"{prepared}/{TOKENIZER}"
    if where == "file":
        (tmp_path / "mine.json").write_bytes(ObjectStore(prepared, env=env).get(TOKENIZER))
        tokenizer = str(tmp_path / "mine.json")
    remote = f"s3://corpora/{next(prefixes)}"
    assert run(remote, tokenizer=tokenizer)[0] == ExitCode.DONE
    assert reader(remote, tokenizer=f"{prepared}/{TOKENIZER}").digest == reader(prepared).digest


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere", "no file or folder 'nowhere'; a corpus is a path, python-stdlib or man-pages"),
        ("pictures", "holds no text file"),
        ("blob", "no readable text for even one sequence of 32 tokens"),
        ("short", "no readable text for even one sequence of 32 tokens"),
    ],
)
def test_a_source_with_nothing_to_read_is_refused(tmp_path, monkeypatch, run, source, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures/a.png").write_bytes(b"x")
    (tmp_path / "blob").write_bytes(b"\xff\xfe" * 1000)
    (tmp_path / "short").write_text("hello")
    code, _, err = run(f"s3://corpora/{next(prefixes)}", source=source)
    assert code == ExitCode.DATA
    assert message in err


@pytest.mark.parametrize(
    ("tokenizer", "message"),
    [
        ("train:256", "too small"),
        ("nowhere.json", "no tokenizer 'nowhere.json'"),
        ("train:many", "no tokenizer 'train:many'"),
        ("s3://corpora/nothing/tokenizer.json", "no such object"),
        ("s3://corpora", "s3://corpora"),
        ("text.json", "not a tokenizer.json"),
        ("endless.json", "no end-of-text token"),
    ],
)
def test_a_bad_tokenizer_is_refused(tmp_path, monkeypatch, run, tokenizer, message, corpus):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.json").write_text("{}")
    model = tokenizers.models.BPE(vocab={"a": 0}, merges=[])
    (tmp_path / "endless.json").write_text(tokenizers.Tokenizer(model).to_str())
    code, _, err = run(f"s3://corpora/{next(prefixes)}", tokenizer=tokenizer)
    assert code == ExitCode.CONFIG
    assert message in err


def test_a_store_that_refuses_is_a_storage_error(env, run):
    code, _, err = run("s3://no-such-bucket/x")
    assert code == ExitCode.STORAGE
    assert "'no-such-bucket' does not exist" in err
    code, _, err = run("s3://corpora/x", environment=env | {"AWS_SECRET_ACCESS_KEY": "wrong"})
    assert code == ExitCode.STORAGE
    assert "AWS_SECRET_ACCESS_KEY" in err
    assert "found" not in err, "credentials are checked before the work"


# Opening


def test_wrong_credentials_are_no_data_error(env, prepared, reader):
    with pytest.raises(StoreDenied):
        reader(prepared, environment=env | {"AWS_SECRET_ACCESS_KEY": "wrong"})


def test_a_missing_bucket_is_named(reader):
    with pytest.raises(DataError, match="no bucket for s3://no-such-bucket/x: create it and prepare"):
        reader("s3://no-such-bucket/x")


def test_an_empty_place_is_named(reader):
    with pytest.raises(DataError, match="s3://corpora/nothing holds no prepared stream: prepare one with"):
        reader("s3://corpora/nothing")


def test_what_is_no_bucket_is_refused(prepared, reader):
    with pytest.raises(DataError, match="not an object store address: '/data'"):
        reader("/data", tokenizer=f"{prepared}/{TOKENIZER}")
    with pytest.raises(DataError, match="not an object store address"):
        reader(prepared, tokenizer="tokenizer.json")


def test_foreign_shards_are_refused(spoilt, reader):
    remote, store = spoilt
    store.delete(MANIFEST)
    with pytest.raises(DataError, match=r"no steadfast.json: they were written by something else"):
        reader(remote)


def test_a_column_of_pickles_is_refused_before_a_shard_is_fetched(spoilt, reader, tmp_path):
    remote, store = spoilt
    index = json.loads(store.get(INDEX))
    index["shards"][0] |= {"column_encodings": ["pkl"], "column_sizes": [None]}
    rewrite(store, index=json.dumps(index).encode())
    with pytest.raises(DataError, match=r"shard.00000.mds has columns {'tokens': 'pkl'}"):
        reader(remote)
    assert not (tmp_path / "cache").exists()


def test_an_index_that_the_manifest_does_not_name_is_refused(spoilt, reader):
    remote, store = spoilt
    store.put(INDEX, store.get(INDEX) + b" ")
    with pytest.raises(DataError, match=r"index.json is not the one"):
        reader(remote)
    store.delete(INDEX)
    with pytest.raises(DataError, match=r"has steadfast.json but no index.json"):
        reader(remote)


def test_an_unreadable_manifest_is_refused(spoilt, reader):
    remote, store = spoilt
    store.put(MANIFEST, b"{}")
    with pytest.raises(DataError, match="not a stream manifest"):
        reader(remote)


def test_an_empty_stream_is_refused(spoilt, reader):
    remote, store = spoilt
    rewrite(store, index=b'{"version": 2, "shards": []}', samples=0, tokens=0)
    with pytest.raises(DataError, match="is empty"):
        reader(remote)


def test_missing_shards_are_counted(spoilt, reader):
    remote, store = spoilt
    shards = shards_of(store)
    store.delete(shards[1])
    with pytest.raises(DataError, match=rf"misses 1 of {len(shards)} shards \(shard.00001.mds\)"):
        reader(remote)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"context_length": 64}, "sequences of 32 tokens, the model's context is 64.*--sequence-length 64"),
        ({"vocabulary_size": 299}, "a vocabulary of 300 tokens, the model only 299"),
        ({"tokenizer": "s3://corpora/nothing/tokenizer.json"}, "no tokenizer at s3://corpora/nothing/tokenizer.json"),
    ],
)
def test_a_stream_for_another_model_is_refused(prepared, reader, model, message):
    with pytest.raises(DataError, match=message):
        reader(prepared, **model)


def test_a_larger_vocabulary_of_the_model_is_fine(prepared, reader):
    assert reader(prepared, vocabulary_size=512).size


def test_another_tokenizer_is_refused(spoilt, prepared, reader):
    remote, store = spoilt
    store.put(TOKENIZER, store.get(TOKENIZER) + b"\n")
    with pytest.raises(DataError, match=r"is not the tokenizer that .* was made with"):
        reader(prepared, tokenizer=f"{remote}/{TOKENIZER}")


# Reading


def test_a_shard_that_stays_corrupt_is_refused(spoilt, reader, tmp_path):
    remote, store = spoilt
    stream = reader(remote)
    data = bytearray(store.get("shard.00000.mds"))
    data[-1] ^= 1
    store.put("shard.00000.mds", data)
    with pytest.raises(DataError, match=f"{remote}/shard.00000.mds is corrupt"):
        stream.read(0)
    assert not list(tmp_path.rglob("shard*"))


def test_a_shard_damaged_on_its_way_is_fetched_again(prepared, reader, monkeypatch):
    get = ObjectStore.get
    answers = [b"damaged"]
    stream = reader(prepared)
    with monkeypatch.context() as patch:
        patch.setattr(ObjectStore, "get", lambda store, key: answers.pop() if answers else get(store, key))
        sample = stream.read(0)
    assert not answers
    assert np.array_equal(sample, reader(prepared).read(0))


def test_a_shard_that_disappears_is_named(spoilt, reader):
    remote, store = spoilt
    stream = reader(remote)
    store.delete("shard.00000.mds")
    with pytest.raises(DataError, match=r"shard.00000.mds is gone"):
        stream.read(0)


@pytest.mark.parametrize("damage", [b"", b"half", None])
def test_a_damaged_cache_heals_itself(prepared, reader, damage):
    stream = reader(prepared)
    expected = stream.read(0)
    path = stream._cache / "shard.00000.mds"
    content = path.read_bytes()
    changed = damage if damage is not None else content[:-1] + bytes([content[-1] ^ 1])
    path.write_bytes(changed)
    assert np.array_equal(reader(prepared).read(0), expected)
    assert path.read_bytes() == content


def test_ranks_of_a_worker_share_the_cache(prepared, reader, monkeypatch):
    first, second = reader(prepared), reader(prepared)
    expected = first.read_many(np.arange(first.size))
    monkeypatch.setattr(ObjectStore, "get", None)
    assert np.array_equal(second.read_many(np.arange(first.size)), expected)


def test_a_stream_with_more_shards_than_may_be_open_is_readable(prepared, reader, monkeypatch):
    monkeypatch.setattr(streams, "_OPEN_SHARDS", 1)
    stream, other = reader(prepared), reader(prepared)
    every = np.arange(stream.size)[::-1]
    assert np.array_equal(stream.read_many(every), [other.read(index) for index in every])
    assert len(stream._open) == 1


def test_tokens_outside_the_vocabulary_are_refused(spoilt, reader):
    remote, store = spoilt
    rewrite(store, vocabulary_size=10)
    with pytest.raises(DataError, match=r"holds token .*, vocabulary size is 10"):
        reader(remote).read(0)


@pytest.mark.parametrize("index", [-1, 10**6])
def test_there_is_no_sample_beyond_the_stream(prepared, reader, index):
    with pytest.raises(IndexError, match="in a stream of"):
        reader(prepared).read(index)


# Loading


def load(stream, *, rank=0, world_size=1, start_step=0):
    return BatchLoader(stream, seed=7, rank=rank, world_size=world_size, global_batch=12, start_step=start_step)


def test_a_loader_reads_the_global_order(prepared, reader):
    stream = reader(prepared)
    loader = load(stream)
    for step in range(2 + 2 * stream.size // 12):  # over the end of the first epoch
        expected = [stream.read(sample_at(step * 12 + row, seed=7, size=stream.size)) for row in range(12)]
        batch = loader.next()
        assert batch.dtype == np.int64
        assert np.array_equal(batch, expected)
    assert loader.wait_seconds > 0
    loader.close()


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_together_read_what_one_rank_reads_from_any_step(prepared, reader, world_size):
    stream = reader(prepared)
    alone = load(stream, start_step=5)
    ranks = [load(stream, rank=rank, world_size=world_size, start_step=5) for rank in range(world_size)]
    for _ in range(3):
        assert np.array_equal(np.concatenate([rank.next() for rank in ranks]), alone.next())
    for loader in [alone, *ranks]:
        loader.close()


def test_an_error_surfaces_as_itself_after_the_batches_before_it(spoilt, reader, monkeypatch):
    remote, store = spoilt
    stream = reader(remote)
    stream.read(0)  # shard 0 is open, the others are gone
    for shard in shards_of(store)[1:]:
        store.delete(shard)
    monkeypatch.setattr(streams, "samples_at", lambda positions, **_: np.array(positions) * 2)
    loader = load(stream)
    assert loader.next().shape == (12, LENGTH + 1)
    with pytest.raises(DataError, match="is gone") as raised:
        [loader.next() for _ in range(100)]
    with pytest.raises(DataError) as again:
        loader.next()
    assert again.value is raised.value
    loader.close()


def test_a_store_that_goes_away_is_a_store_error(prepared, reader, monkeypatch):
    stream = reader(prepared)

    def refuse(store, key):
        raise StoreError("gone away")

    monkeypatch.setattr(ObjectStore, "get", refuse)
    loader = load(stream)
    with pytest.raises(StoreError, match="gone away"):
        loader.next()
    loader.close()


def test_a_closed_loader_has_no_thread_and_no_batch(prepared, reader):
    loader = load(reader(prepared))
    loader.next()
    loader.close()
    loader.close()
    assert not loader._thread.is_alive()
    with pytest.raises(RuntimeError, match="closed"):
        loader.next()


def test_a_batch_that_does_not_divide_is_refused_at_once(prepared, reader):
    with pytest.raises(ValueError, match="does not divide by 5 ranks"):
        load(reader(prepared), world_size=5)
