"""One rank of a test of the gang: joins over gloo as under the agent, does what its argument says, prints JSON."""

import json
import os
import signal
import sys
import time
from datetime import timedelta

import torch
from torch import nn

from steadfast_contract.env import RankEnv
from steadfast_trainer import parallel
from steadfast_trainer.parallel import CollectiveError, FlatParameters, join


def together(world):
    model = nn.Linear(3, 2)
    flat = FlatParameters(model)
    results = {"told": world.tell_all("start", "resume at 7" if world.rank == 0 else None)}
    results["sum"] = world.sum(torch.arange(4.0) * (world.rank + 1)).tolist()
    for wishes in ("nothing", "save", "stop"):
        flat.zero_gradients()
        model.weight.grad.fill_(float(world.rank + 1))
        agreed = flat.reduce(
            world,
            loss=torch.tensor(2.0 + world.rank),
            save=wishes == "save" and world.rank == 0,
            stop=wishes == "stop" and world.rank == 1,
        )
        results[wishes] = [*agreed, model.weight.grad.unique().tolist(), model.bias.grad.unique().tolist()]
    return results


def peer_dies(world):
    world.sum(torch.ones(2))
    if world.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    started = time.monotonic()
    try:
        for _ in range(1000):
            world.sum(torch.ones(1000))
    except CollectiveError as error:
        return {"error": str(error), "seconds": time.monotonic() - started}
    return {"error": None}


def first_rank_dies(world):
    world.sum(torch.ones(2))
    if world.rank == 0:
        time.sleep(1)  # the other one waits for a word meanwhile
        os.kill(os.getpid(), signal.SIGKILL)
    parallel.CONNECT_TIMEOUT = timedelta(seconds=2)
    started, errors = time.monotonic(), []
    for ask in (lambda: world.tell_all("never said", None), world.store):
        try:
            ask()
        except CollectiveError as error:
            errors.append(str(error))
    return {"errors": errors, "seconds": time.monotonic() - started}


def main():
    torch.set_num_threads(1)
    env = RankEnv.from_mapping(os.environ)
    world = join(env, device=torch.device("cpu"), namespace="test/1/0")
    print(json.dumps(globals()[sys.argv[1]](world)), flush=True)
    if sys.argv[1] == "together":
        world.sum(torch.zeros(1))  # rank 0 serves the store: it leaves last
    os._exit(0)


if __name__ == "__main__":
    main()
