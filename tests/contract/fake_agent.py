"""Stands in for the agent where no rank is needed: answers /status, and ends when a signal says how.

SIGTERM: stopped and saved. SIGUSR1: a rank failed. SIGUSR2: done. `FAKE_AGENT` is `deaf` (to SIGTERM) or `silent` (no
answers, no report).
"""

import ctypes
import http.server
import os
import signal
import sys

from steadfast_contract.env import WorkerEnv
from steadfast_contract.exits import ExitCode, RankReport
from steadfast_contract.folder import agent_path, termination_path
from steadfast_contract.heartbeat import AgentPhase, AgentStatus, Pulse

ENV = WorkerEnv.from_mapping(os.environ)
MASTER = "" if ENV.node_rank else "127.0.0.1:29500"
STATUS = AgentStatus(
    worker=ENV.worker, attempt=ENV.attempt, node_rank=ENV.node_rank, phase=AgentPhase.RUNNING, master=MASTER,
    progress=Pulse(step=2),
)  # fmt: skip


class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/status" else 404)
        self.end_headers()
        self.wfile.write(STATUS.to_json().encode())

    def log_message(self, *_):
        pass


def end(code, message):
    report = RankReport(code=code, attempt=ENV.attempt, rank=0, message=message)
    termination_path(ENV.folder).write_text(report.to_json())
    os._exit(code)


ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # never outlive the test
signal.signal(signal.SIGUSR1, lambda *_: end(ExitCode.COLLECTIVE, "simulated"))
signal.signal(signal.SIGUSR2, lambda *_: end(ExitCode.DONE, ""))
signal.signal(signal.SIGTERM, lambda *_: end(ExitCode.SAVED, "saved"))
if os.environ.get("FAKE_AGENT") == "silent":
    sys.exit("nothing to say")
if os.environ.get("FAKE_AGENT") == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
server = http.server.HTTPServer((ENV.host, ENV.port), Answer)
new = agent_path(ENV.folder).with_suffix(".new")
new.write_text(f"{ENV.host}:{server.server_port}")
new.rename(agent_path(ENV.folder))
server.serve_forever()
