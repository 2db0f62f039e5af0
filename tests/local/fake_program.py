"""A training program for tests of the agent: does at once what `STEADFAST_TRAINING` says for its rank."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

from steadfast_contract.env import RankEnv
from steadfast_contract.exits import RankReport
from steadfast_contract.folder import pulse_path, report_path
from steadfast_contract.heartbeat import PULSE_BYTES, Pulse, pack_pulse

IMPORTED_BY = os.getpid()
print("Imported the program")  # not flushed: must not be said again by every rank
if os.environ.get("FAKE_THREADS"):
    threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
if os.environ.get("FAKE_IMPORT_SECONDS"):
    time.sleep(float(os.environ["FAKE_IMPORT_SECONDS"]))


def main():
    env = RankEnv.from_mapping(os.environ)
    for action, value in json.loads(env.training)[str(env.rank)]:
        ACTIONS[action](env, value)


def report(env, code, message=""):
    words = RankReport(code=code, attempt=env.attempt, rank=env.rank, step=7, message=message)
    report_path(env.folder, local_rank=env.local_rank).write_text(words.to_json())


def pulse(env, step):
    page = bytearray(PULSE_BYTES)
    pack_pulse(Pulse(step=step, loss=2.5), into=memoryview(page), sequence=0)
    pulse_path(env.folder, local_rank=env.local_rank).write_bytes(page)


def say_environment(env, name):
    print(json.dumps({"pid": os.getpid(), "imported_by": IMPORTED_BY} | dict(os.environ)))


def raise_error(env, message):
    raise ValueError(message)


def wait_for_term(env, code):
    """Until SIGTERM; then report and leave with this code."""
    stopped = []
    signal.signal(signal.SIGTERM, lambda number, frame: stopped.append(number))
    print("waiting", flush=True)
    while not stopped:
        time.sleep(0.01)
    report(env, code)
    os._exit(code)


def start_child(env, seconds):
    print("child", subprocess.Popen(["sleep", seconds]).pid, flush=True)


ACTIONS = {
    "report": lambda env, value: report(env, *value),
    "pulse": pulse,
    "exit": lambda env, code: os._exit(code),
    "sys.exit": lambda env, code: sys.exit(code),
    "kill": lambda env, number: os.kill(os.getpid(), number),
    "print": lambda env, text: print(text, end=""),
    "write": lambda env, text: os.write(1, text.encode()),
    "repeat": lambda env, value: print(value[0] * value[1], end="", flush=True),
    "raise": raise_error,
    "environment": say_environment,
    "sleep": lambda env, seconds: time.sleep(seconds),
    "wait": wait_for_term,
    "child": start_child,
}

if __name__ == "__main__":
    main()
