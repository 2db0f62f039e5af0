# Image of the operator. Runs without root on a read-only root filesystem. Build it from the root of the repository:
#   docker build -f images/operator.Dockerfile -t steadfast-operator .
ARG PYTHON_IMAGE=docker.io/library/python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE}
RUN useradd --uid 10001 --user-group --home-dir /home/steadfast --create-home steadfast
ENV PATH=/opt/steadfast/bin:$PATH PYTHONUNBUFFERED=1

COPY requirements/uv.lock requirements/operator.lock /opt/requirements/
RUN python3 -m venv /opt/steadfast \
 && pip install --quiet --no-cache-dir --disable-pip-version-check --require-hashes -r /opt/requirements/uv.lock \
 && VIRTUAL_ENV=/opt/steadfast uv pip install --quiet --no-cache --compile-bytecode --require-hashes \
      -r /opt/requirements/operator.lock \
 && pip uninstall --quiet --yes uv

COPY trainer/steadfast_contract/ /opt/steadfast/lib/python3.11/site-packages/steadfast_contract/
COPY operator/steadfast_operator/ /opt/steadfast/lib/python3.11/site-packages/steadfast_operator/
RUN python -m compileall -q /opt/steadfast/lib/python3.11/site-packages/steadfast_*

USER 10001:10001
WORKDIR /home/steadfast
ENTRYPOINT ["python", "-m", "steadfast_operator"]
