"""The training loop, top to bottom: join, claim the run, restore, then step after step until done or told to stop.

Called by `__main__` in every rank. All ranks run the same code; they learn from the step's one all-reduce whether any
of them wants a checkpoint or an end, so they always do both at the same step.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from steadfast_contract.checkpoints import Manifest
from steadfast_contract.exits import ExitCode
from steadfast_contract.folder import cache_path, steps_path
from steadfast_contract.heartbeat import Phase, StepRecord
from steadfast_contract.training import TrainingConfig
from steadfast_trainer.checkpoint import load
from steadfast_trainer.checkpoint.fence import Fence
from steadfast_trainer.checkpoint.layout import state_views
from steadfast_trainer.checkpoint.save import Saver
from steadfast_trainer.checkpoint.store import ObjectStore
from steadfast_trainer.config import ConfigError, RankConfig
from steadfast_trainer.data.streams import BatchLoader, DataError, TokenStream, open_stream
from steadfast_trainer.model.router import routing_loss
from steadfast_trainer.model.transformer import Transformer, next_token_loss
from steadfast_trainer.optim import AdamW, learning_rate_at
from steadfast_trainer.parallel import FlatParameters, World, join
from steadfast_trainer.precision import Precision, precision_of
from steadfast_trainer.pulse import PulseWriter


class NonFiniteLoss(Exception):
    """The loss or the gradient norm is not a number any more."""


def train(
    config: RankConfig, *, environ: Mapping[str, str], folder: Path, pulse: PulseWriter, stopping: Callable[[], bool]
) -> ExitCode:
    """Train until the last step, or save and stop when `stopping` says so on any rank."""
    training, env = config.training, config.env

    # 1. The gang.
    pulse.update(phase=Phase.RENDEZVOUS, steps=training.steps, updated_at=time.time())
    restart = environ.get("TORCHELASTIC_RESTART_COUNT", "0")  # torchrun's store outlives a restart
    world = join(env, device=config.device, namespace=f"steadfast/{env.attempt}/{restart}")

    # 2. The run: rank 0 claims it, all learn where to start.
    store = _open_run(training.run, environ=environ)
    fence, start = _claim_run(store, world, training, environ=environ)

    # 3. Data, model, optimizer.
    pulse.update(phase=Phase.RESTORING, updated_at=time.time())
    with _rank_0_first(world, "data"), _letting_go_of(fence):
        stream = open_stream(
            training.stream.remote,
            tokenizer=training.tokenizer,
            context_length=training.model.context_length,
            vocabulary_size=training.model.vocabulary_size,
            cache=cache_path(str(folder)),
            env=environ,
        )
    precision = precision_of(training.recipe, device=config.device)
    with torch.device(config.device):
        model = Transformer(training.model, dtype=precision.expert_dtype, group_rows=precision.group_rows)
    flat = FlatParameters(model)
    optimizer = AdamW(flat, training.optimizer)
    state = state_views(flat, optimizer)

    # 4. The state: fresh, or the newest checkpoint, with the exact place in the data.
    data = _data_identity(training, stream)
    first_step, samples = 0, ""
    torch.manual_seed(training.seed + env.rank)  # a checkpoint of fewer ranks has no generator state for the others
    if start.manifest is None:
        model.initialise(training.seed)
    else:
        with _rank_0_first(world, "manifest"), _letting_go_of(fence):
            manifest = load.fetch_manifest(store, start.manifest)
            load.refuse_foreign(manifest, run=store.uri, model=training.model, data=data)
        with _letting_go_of(fence):
            load.restore(store, manifest, state=state, rank=env.rank)
        optimizer.resume_at(manifest.step)
        first_step = manifest.step
        samples = _restored_samples(manifest, world)
    tokens = first_step * training.global_batch_tokens
    pulse.update(resumed_from=first_step, committed=first_step, step=first_step, tokens=tokens, updated_at=time.time())

    # 5. Step after step.
    loader = BatchLoader(
        stream,
        seed=training.seed,
        rank=env.rank,
        world_size=env.world_size,
        global_batch=training.global_batch_samples,
        start_step=first_step,
    )
    saver = Saver(store, world, attempt=start.attempt, model=training.model, fence=fence)
    saved_at, attempt_started = time.monotonic(), time.monotonic()
    history = steps_path(str(folder)).open("w", buffering=1) if world.rank == 0 else None
    stopped = False
    step = first_step
    pulse.update(phase=Phase.TRAINING, updated_at=time.time())
    while step < training.steps and not stopped:
        batch_BT = loader.next()
        samples = hashlib.sha256(samples.encode() + batch_BT.tobytes()).hexdigest()
        flat.zero_gradients()
        loss = _forward_backward(model, torch.from_numpy(batch_BT).to(world.device), world, precision)
        due = time.monotonic() - saved_at >= training.checkpoint_interval_seconds
        agreed = flat.reduce(world, loss=loss, save=world.rank == 0 and due and not saver.busy, stop=stopping())
        if not math.isfinite(agreed.loss) or not math.isfinite(agreed.gradient_norm):
            raise NonFiniteLoss(f"step {step + 1}: loss {agreed.loss}, gradient norm {agreed.gradient_norm}")
        optimizer.step(learning_rate=learning_rate_at(step, training), gradient_norm=agreed.gradient_norm)
        step += 1

        stopped = agreed.stop
        if agreed.save or stopped or step == training.steps:
            position = data | {"samples": step * training.global_batch_samples}
            saver.save(step, state, samples=samples, data=position)
            saved_at = time.monotonic()
        now = time.time()
        done = step - first_step
        pulse.update(
            step=step,
            tokens=step * training.global_batch_tokens,
            loss=agreed.loss,
            tokens_per_second=done * training.global_batch_tokens / (time.monotonic() - attempt_started),
            committed=max(pulse.pulse.committed, saver.committed),
            data_wait_seconds=loader.wait_seconds,
            stall_seconds=saver.stall_seconds,
            updated_at=now,
            **({"first_step_at": now, "first_loss": agreed.loss} if done == 1 else {}),
        )
        if history is not None:
            history.write(json.dumps(asdict(StepRecord(step=step, loss=agreed.loss, at=now))) + "\n")
            _log_step(step, training.steps, agreed.loss, agreed.gradient_norm)

    # 6. The end: nothing is done before it is durable.
    loader.close()
    pulse.update(phase=Phase.SAVING, updated_at=time.time())
    saver.finish()
    world.meet()  # rank 0 has committed, and its rendezvous may go
    if fence is not None:
        fence.release()
    pulse.update(phase=Phase.DONE, committed=max(pulse.pulse.committed, saver.committed), updated_at=time.time())
    return ExitCode.SAVED if stopped and step < training.steps else ExitCode.DONE


def _open_run(run: str, *, environ: Mapping[str, str]) -> ObjectStore:
    try:
        return ObjectStore(run, env=environ)
    except ValueError as error:
        raise ConfigError(f"checkpoints are kept in a bucket: {error}") from error


class _Start(NamedTuple):
    attempt: int
    manifest: str | None


def _claim_run(
    store: ObjectStore, world: World, training: TrainingConfig, *, environ: Mapping[str, str]
) -> tuple[Fence | None, _Start]:
    fence = None
    if world.rank == 0:
        env = world.env
        owner = env.job_uid or environ.get("TORCHELASTIC_RUN_ID") or secrets.token_hex(8)
        fence = Fence.claim(store, owner=owner, job=env.job, attempt=env.attempt, resume=training.resume)
    told = world.tell_all("start", f"{fence.latest.attempt} {fence.latest.manifest or ''}" if fence else None)
    attempt, _, manifest = told.partition(" ")
    return fence, _Start(int(attempt), manifest or None)


@contextmanager
def _rank_0_first(world: World, what: str) -> Iterator[None]:
    """Let rank 0 try alone: what it refuses, nobody else need ask the store for, and one rank says why."""
    if world.rank > 0:
        world.tell_all(what, None)
    yield
    if world.rank == 0:
        world.tell_all(what, "can be read")


@contextmanager
def _letting_go_of(fence: Fence | None) -> Iterator[None]:
    """Release a run that cannot go on like this: the corrected job need not watch a dead lease first."""
    try:
        yield
    except (DataError, load.CheckpointForeign, load.CheckpointUnreadable):
        if fence is not None:
            fence.release()
        raise


def _data_identity(training: TrainingConfig, stream: TokenStream) -> dict[str, object]:
    """What the position in the data means: any change of these changes the order of samples."""
    return {
        "seed": training.seed,
        "global_batch_samples": training.global_batch_samples,
        "stream": training.stream.name,
        "shards": stream.digest,
        "tokenizer": stream.tokenizer_digest,
    }


def _restored_samples(manifest: Manifest, world: World) -> str:
    """This rank's digest of consumed samples; another world size starts a new one."""
    return manifest.samples[str(world.rank)] if manifest.world_size == world.size else ""


def _forward_backward(model: Transformer, token_BT: Tensor, world: World, precision: Precision) -> Tensor:
    with precision.autocast():
        output = model(token_BT[:, :-1])
    loss = next_token_loss(output.logits_BTV, token_BT[:, 1:])
    balance = routing_loss(count_LE=world.sum(output.count_LE), probability_LE=output.probability_LE, z_L=output.z_L)
    torch.autograd.backward(loss + balance)
    return loss


def _log_step(step: int, steps: int, loss: float, norm: float) -> None:
    if step == 1 or step % 10 == 0 or step == steps:
        print(f"Finished step={step}/{steps} loss={loss:.4f} gradient_norm={norm:.3f} pid={os.getpid()}", flush=True)
