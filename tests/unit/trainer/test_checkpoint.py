"""Saving and restoring: bit for bit, and nothing is ever chosen that is not complete."""

import ast
import hashlib
import importlib.util
import json
import threading
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save as to_safetensors

from fakes.store import FakeObjectStore, FakeService
from steadfast_contract.checkpoints import LATEST, Latest, Manifest, Shard
from steadfast_contract.env import RankEnv
from steadfast_contract.models import PRESETS
from steadfast_contract.training import OptimizerConfig
from steadfast_trainer.checkpoint import load
from steadfast_trainer.checkpoint import save as save_module
from steadfast_trainer.checkpoint.fence import Fence, Fenced
from steadfast_trainer.checkpoint.layout import shares, state_views
from steadfast_trainer.checkpoint.load import CheckpointForeign, CheckpointUnreadable
from steadfast_trainer.checkpoint.save import CheckpointFailed, Saver
from steadfast_trainer.checkpoint.store import StoreUnavailable
from steadfast_trainer.model.transformer import Transformer
from steadfast_trainer.optim import AdamW
from steadfast_trainer.parallel import CollectiveError, FlatParameters, World

SHAPE = replace(PRESETS["moe-nano"], vocabulary_size=40, context_length=8, layers=1)
DATA = {"seed": 17, "global_batch_samples": 4, "stream": "s", "shards": "abc", "tokenizer": "def"}


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setattr(Fence, "_renew", lambda self, job: None)


@dataclass(frozen=True, kw_only=True)
class TogetherInOneProcess(World):
    shared: dist.Store

    def store(self):
        return dist.PrefixStore(self.namespace, self.shared)


class Store(FakeObjectStore):
    """A store that refuses to write some keys."""

    def __init__(self, *args, refuse=(), **options):
        super().__init__(*args, **options)
        self.refuse = set(refuse)

    def put(self, key, data, *, deadline_seconds=None):
        self._refuse(key)
        super().put(key, data, deadline_seconds=deadline_seconds)

    def _write_if(self, key, data, *, expected, deadline_seconds):
        self._refuse(key)
        return super()._write_if(key, data, expected=expected, deadline_seconds=deadline_seconds)

    def _refuse(self, key):
        if any(part in key for part in self.refuse):
            raise StoreUnavailable(f"PUT {key}: connection refused")


def a_state(seed):
    """State as after some training; (views, generator state)."""
    flat = FlatParameters(Transformer(SHAPE))
    optimizer = AdamW(flat, OptimizerConfig())
    generator = torch.Generator().manual_seed(seed)
    for buffer in (flat.weights, *optimizer.buffers().values()):
        buffer.copy_(torch.randn(buffer.shape, generator=generator))
    return state_views(flat, optimizer)


class Gang:
    """Some ranks of one attempt in one process, and the run that they train."""

    def __init__(self, size=1, *, attempt=1, service=None, refuse=()):
        self.store = Store("s3://runs/a", service=service or FakeService(), refuse=refuse)
        self.fence = Fence.claim(self.store, owner="one", job="team/moe", attempt=attempt, resume="auto")
        shared = dist.HashStore()
        self.savers = [
            Saver(
                self.store,
                TogetherInOneProcess(
                    rank=rank, size=size, device=torch.device("cpu"), env=RankEnv(), namespace="t", shared=shared
                ),
                attempt=attempt,
                model=SHAPE,
                fence=self.fence if rank == 0 else None,
            )
            for rank in range(size)
        ]

    def save(self, step, state):
        for rank, saver in enumerate(self.savers):
            torch.manual_seed(1000 * rank + step)
            saver.save(step, state, samples=f"digest of rank {rank}", data=DATA | {"samples": 4 * step})

    def finish(self):
        for saver in self.savers:
            saver.finish()

    @property
    def latest(self):
        return Latest.from_json(self.store.get(LATEST))

    @property
    def keys(self):
        return [key for key in self.store.list() if key not in ("LATEST", "LEASE")]

    def manifest(self):
        return load.fetch_manifest(self.store, self.latest.manifest)


@given(st.dictionaries(st.text(), st.integers(0, 10**9)), st.integers(1, 20))
def test_shares_deal_every_tensor_once_and_evenly(sizes, num_ranks):
    dealt = shares(sizes, num_ranks=num_ranks)
    assert sorted(name for share in dealt for name in share) == sorted(sizes)
    loads = [sum(sizes[name] for name in share) for share in dealt]
    assert max(loads) - min(loads) <= max(sizes.values(), default=0)
    assert dealt == shares(dict(reversed(sizes.items())), num_ranks=num_ranks), "every rank finds the same"


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_checkpoint_restores_every_bit(size):
    gang, state = Gang(size), a_state(1)
    expected = {name: view.clone() for name, view in state.items()}
    gang.save(10, state)
    for view in state.values():
        view.zero_()  # training goes on while the upload runs
    gang.finish()
    for rank in range(size):
        restored = a_state(2)
        load.restore(gang.store, gang.manifest(), state=restored, rank=rank)
        assert all(torch.equal(restored[name], tensor) for name, tensor in expected.items())
        drawn = torch.rand(3)
        torch.manual_seed(1000 * rank + 10)
        assert torch.equal(drawn, torch.rand(3)), "each rank draws on where it stood"


def test_another_world_size_restores_the_same_state():
    gang, state = Gang(3), a_state(1)
    gang.save(10, state)
    gang.finish()
    restored = a_state(2)
    load.restore(gang.store, gang.manifest(), state=restored, rank=7)
    assert all(torch.equal(restored[name], tensor) for name, tensor in state.items())


def test_a_manifest_says_what_it_is():
    gang, state = Gang(2), a_state(1)
    gang.save(10, state)
    gang.save(20, state)
    gang.finish()
    first = Manifest.from_json(gang.store.get("step-000000000010/attempt-000001/manifest.json"))
    second = gang.manifest()
    assert (second.step, second.attempt, second.owner, second.world_size) == (20, 1, "one", 2)
    assert (first.parent, second.parent) == (None, "step-000000000010/attempt-000001/manifest.json")
    assert second.samples == {"0": "digest of rank 0", "1": "digest of rank 1"}
    assert second.data == DATA | {"samples": 80}
    for shard in second.shards:
        content = gang.store.get(shard.key)
        assert (shard.size, shard.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert sorted(n for shard in second.shards for n in shard.tensors if not n.startswith("rng/")) == sorted(state)
    assert gang.savers[0].committed == 20
    assert gang.latest.step == 20


@pytest.mark.parametrize("rank", [0, 1])
def test_a_shard_that_cannot_be_uploaded_leaves_no_manifest_and_training_goes_on(rank, capsys):
    gang, state = Gang(2), a_state(1)
    gang.save(10, state)
    for saver in gang.savers:
        saver._join()
    before = gang.latest
    gang.store.refuse = {f"rank-{rank:05d}-of"}
    gang.save(20, state)
    for saver in gang.savers:
        saver._thread.join()
    gang.store.refuse = {}
    assert gang.latest == before
    assert not [key for key in gang.keys if "step-000000000020" in key and "manifest" in key]
    gang.save(30, state)
    said = capsys.readouterr().out
    assert said.count("Gave up a checkpoint, training goes on: ") == (1 if rank == 0 else 2)
    assert f"PUT step-000000000020/attempt-000001/rank-{rank:05d}-of-00002.safetensors: connection refused" in said
    gang.finish()
    assert (gang.latest.step, gang.manifest().parent) == (30, before.manifest)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_run_that_ends_without_its_last_checkpoint_has_failed(rank):
    gang = Gang(2, refuse={f"rank-{rank:05d}-of"})
    gang.save(10, a_state(1))
    with pytest.raises(CheckpointFailed, match="connection refused"):
        gang.savers[0].finish()
    assert (gang.latest.step, gang.savers[0].committed) == (0, -1)


@pytest.mark.parametrize("refused", ["manifest.json", "LATEST"])
def test_an_upload_that_dies_before_its_end_leaves_the_newest_checkpoint_alone(refused):
    gang, state = Gang(2), a_state(1)
    gang.save(10, state)
    gang.finish()
    before = gang.latest
    gang.store.refuse = {refused}
    gang.save(20, state)
    with pytest.raises(CheckpointFailed):
        gang.savers[0].finish()
    assert gang.latest == before
    assert gang.savers[0].committed == 10
    restored = a_state(2)
    load.restore(gang.store, gang.manifest(), state=restored, rank=0)
    assert all(torch.equal(restored[name], tensor) for name, tensor in state.items())


def test_a_store_that_is_away_and_returns_loses_one_checkpoint_only(capsys):
    gang, state = Gang(1), a_state(1)
    gang.store.service.go_away()
    gang.save(10, state)
    gang.savers[0]._thread.join()
    gang.store.service.come_back()
    gang.save(20, state)
    gang.finish()
    assert "Gave up a checkpoint" in capsys.readouterr().out
    assert (gang.latest.step, gang.manifest().parent) == (20, None)


def test_a_short_outage_is_outlived():
    gang = Gang(1)
    gang.store.service.go_away(seconds=save_module.UPLOAD_SECONDS - 1)
    gang.save(10, a_state(1))
    gang.finish()
    assert gang.latest.step == 10


def test_an_older_gang_is_told_that_it_is_over():
    gang = Gang(1)
    newer = Gang(1, attempt=2, service=gang.store.service)
    gang.save(10, a_state(1))
    with pytest.raises(Fenced):
        gang.finish()
    assert newer.latest == newer.fence.latest


def test_a_rank_whose_peers_are_gone_is_a_victim_not_a_culprit():
    class Gone(dist.Store):
        def set(self, key, value):
            raise RuntimeError("Broken pipe")

    gang = Gang(2)
    gang.savers[1]._receipts = Gone()
    gang.savers[1].save(10, a_state(1), samples="", data=DATA)
    with pytest.raises(CollectiveError, match="rank 0 is gone"):
        gang.savers[1].finish()


def test_a_rank_that_never_finishes_its_upload_is_named(monkeypatch):
    monkeypatch.setattr(save_module, "UPLOAD_SECONDS", 0.05)
    gang = Gang(2)
    gang.savers[0].save(10, a_state(1), samples="", data=DATA)
    with pytest.raises(CheckpointFailed, match="step 10: rank 1 did not finish"):
        gang.savers[0].finish()


def test_a_saver_is_busy_until_its_upload_is_done():
    gang, gate = Gang(1), threading.Event()
    real = gang.store.put
    gang.store.put = lambda *args, **options: (gate.wait(10), real(*args, **options))
    assert not gang.savers[0].busy
    gang.save(10, a_state(1))
    assert gang.savers[0].busy
    gate.set()
    gang.finish()
    assert not gang.savers[0].busy


@pytest.fixture(scope="module")
def saved():
    """Objects of a run with one checkpoint by two ranks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Fence, "_renew", lambda self, job: None)
        gang = Gang(2)
        gang.save(10, a_state(1))
        gang.finish()
    return gang


def restored_after(saved, damage, *, fix_manifest=False):
    store = Store("s3://runs/a", service=FakeService(buckets={"runs": dict(saved.store.service.buckets["runs"])}))
    manifest = saved.manifest()
    shard = manifest.shards[1]
    content = damage(store.get(shard.key))
    if content is None:
        store.delete(shard.key)
    else:
        store.put(shard.key, content)
        if fix_manifest:
            fixed = replace(shard, size=len(content), sha256=hashlib.sha256(content).hexdigest())
            manifest = replace(manifest, shards=(manifest.shards[0], fixed))
    load.restore(store, manifest, state=a_state(2), rank=0)


def flip(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        pytest.param(lambda content: None, "is missing", id="missing"),
        pytest.param(lambda content: content[:-1], "is damaged", id="truncated"),
        pytest.param(lambda content: b"", "is damaged", id="empty"),
        pytest.param(lambda content: content + b"\0", "is damaged", id="too long"),
        pytest.param(flip, "is damaged", id="one bit flipped"),
    ],
)
def test_a_shard_that_is_not_as_it_was_is_named(saved, damage, message):
    with pytest.raises(CheckpointUnreadable, match=f"rank-00001-of-00002.safetensors {message}"):
        restored_after(saved, damage)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        pytest.param(lambda content: b"no safetensors", "rank-00001-of-00002", id="another format"),
        pytest.param(lambda content: b"", "rank-00001-of-00002", id="nothing in it"),
        pytest.param(lambda content: to_safetensors({}), r"lacks \d+ tensors", id="no tensors in it"),
        pytest.param(
            lambda content: to_safetensors({"weights/head.weight": torch.zeros(2)}),
            r"tensor weights/head.weight is torch.float32 \(2,\), not torch.float32 \(40, 32\)",
            id="another shape",
        ),
        pytest.param(
            lambda content: to_safetensors({"weights/head.weight": torch.zeros(40, 32).half()}),
            "is torch.float16",
            id="another type",
        ),
    ],
)
def test_a_shard_that_was_written_wrong_is_named(saved, damage, message):
    with pytest.raises(CheckpointUnreadable, match=message):
        restored_after(saved, damage, fix_manifest=True)


@pytest.mark.parametrize("content", [None, b"{", b"{}", b'{"version": 1}', b'{"version": 2}'], ids=repr)
def test_a_manifest_that_cannot_be_read_is_named(content):
    store = FakeObjectStore("s3://runs/a")
    if content is not None:
        store.put("m.json", content)
    with pytest.raises(CheckpointUnreadable, match=r"manifest s3://runs/a/m\.json: "):
        load.fetch_manifest(store, "m.json")


@pytest.mark.parametrize(
    ("model", "data", "named"),
    [
        pytest.param({}, {}, [], id="the same"),
        pytest.param({}, {"samples": 4}, [], id="the same elsewhere in the data"),
        pytest.param({"layers": 2}, {}, ["model.layers is 1 in the checkpoint and 2 here"], id="another model"),
        pytest.param(
            {"experts": 8, "heads": 2},
            {"seed": 18, "tokenizer": "xyz"},
            ["model.experts is 4", "model.heads is 4", "data.seed is 17", "data.tokenizer is 'def'"],
            id="nearly everything",
        ),
        pytest.param({}, {"mix": "new"}, ["data.mix is None in the checkpoint"], id="something new"),
    ],
)
def test_a_foreign_checkpoint_is_refused_with_every_difference(saved, model, data, named):
    def refuse():
        load.refuse_foreign(saved.manifest(), run="s3://runs/a", model=replace(SHAPE, **model), data=DATA | data)

    if not named:
        refuse()
        return
    with pytest.raises(CheckpointForeign, match=r"run s3://runs/a holds a checkpoint \(step 10\)") as caught:
        refuse()
    assert [text for text in named if text not in str(caught.value)] == []


def test_a_manifest_survives_the_bucket():
    gang = Gang(1)
    gang.save(10, a_state(1))
    gang.finish()
    manifest = gang.manifest()
    assert Manifest.from_json(manifest.to_json()) == manifest
    assert json.loads(manifest.to_json())["version"] == 1
    assert isinstance(manifest.shards[0], Shard)


def sources():
    for package in ("steadfast_trainer", "steadfast_contract", "steadfast_agent"):
        yield from sorted(Path(importlib.util.find_spec(package).origin).parent.rglob("*.py"))


UNPICKLERS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "shelve", "marshal", "joblib"}


@pytest.mark.parametrize("path", list(sources()), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_nothing_unpickles(path):
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                assert not {alias.name.partition(".")[0] for alias in names} & UNPICKLERS
            case ast.ImportFrom(module=module) if module:
                assert module.partition(".")[0] not in UNPICKLERS
            case ast.Attribute(value=ast.Name(id="torch"), attr="load"):
                pytest.fail(f"torch.load in line {node.lineno}")
            case ast.keyword(arg="allow_pickle", value=ast.Constant(value=True)):
                pytest.fail(f"allow_pickle in line {node.value.lineno}")
            case ast.Attribute(attr="all_gather_object" | "broadcast_object_list" | "gather_object"):
                pytest.fail(f"objects are sent as pickles in line {node.lineno}")
