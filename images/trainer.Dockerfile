# Image of a worker: the agent as first process, the trainer, everything they import. Runs without root on a read-only
# root filesystem. Build it from the root of the repository:
#   docker build -f images/trainer.Dockerfile --target cpu -t steadfast-trainer .
ARG PYTHON_IMAGE=docker.io/library/python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS cpu
RUN useradd --uid 10001 --user-group --home-dir /home/steadfast --create-home steadfast \
 && install --directory --owner=steadfast /run/steadfast
ENV PATH=/opt/steadfast/bin:$PATH PYTHONUNBUFFERED=1

# Large and seldom new. Three layers of at most 3 GB: nodes pull them side by side, and building needs a disk for few
# copies of 3 GB, not of 6. Bytecode is written here: without root nobody could later, each start would compile again.
COPY requirements/uv.lock requirements/trainer.lock /opt/requirements/
RUN python3 -m venv /opt/steadfast \
 && pip install --quiet --no-cache-dir --disable-pip-version-check --require-hashes -r /opt/requirements/uv.lock
ENV UV_COMPILE_BYTECODE=1 UV_NO_CACHE=1 UV_REQUIRE_HASHES=1 VIRTUAL_ENV=/opt/steadfast
RUN awk '/^[a-z]/ {keep = /^(cuda|nvidia)-/} keep' /opt/requirements/trainer.lock > /tmp/cuda.lock \
 && uv pip install --quiet --no-deps -r /tmp/cuda.lock && rm /tmp/cuda.lock
RUN awk '/^[a-z]/ {keep = /^(torch|triton)=/} keep' /opt/requirements/trainer.lock > /tmp/torch.lock \
 && uv pip install --quiet --no-deps -r /tmp/torch.lock && rm /tmp/torch.lock
RUN uv pip install --quiet -r /opt/requirements/trainer.lock

# Small and new with every commit.
COPY trainer/ /opt/steadfast/lib/python3.11/site-packages/
RUN python -m compileall -q /opt/steadfast/lib/python3.11/site-packages/steadfast_*

USER 10001:10001
WORKDIR /home/steadfast
ENTRYPOINT ["python", "-m", "steadfast_agent"]
