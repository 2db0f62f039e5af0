"""Every kopf decorator of the project: one event handler for TrainingJobs, and what kopf needs to run.

No daemon, timer or finalizer: a job can be deleted while no operator runs, and its pods go with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import kopf

from steadfast_operator.api.crd import GROUP, PLURAL, VERSION
from steadfast_operator.settings import Settings
from steadfast_operator.shell.api_server import ApiServer
from steadfast_operator.shell.jobs import Jobs
from steadfast_operator.shell.kube import JobKey


def build_registry(jobs: Jobs, *, server: ApiServer) -> Any:
    """The handlers of one operator, for `kopf.operator(registry=...)`."""
    registry = kopf.OperatorRegistry()

    async def log_in(**_: Any) -> Any:
        return await connection_info(server)

    async def hear(body: Mapping[str, Any], **_: Any) -> None:
        meta = body["metadata"]
        jobs.hear(JobKey(namespace=meta["namespace"], name=meta["name"], uid=meta["uid"]))

    async def clean_up(**_: Any) -> None:
        await jobs.close()  # kopf would wait five seconds for our tasks to end by themselves

    kopf.on.login(registry=registry)(log_in)
    kopf.on.cleanup(registry=registry)(clean_up)
    kopf.on.event(GROUP, VERSION, PLURAL, registry=registry)(hear)
    return registry


def build_settings(settings: Settings) -> Any:
    """kopf's own settings: it watches one kind, and writes nothing."""
    ours = kopf.OperatorSettings()
    ours.posting.enabled = False  # it would mirror logs as Events
    ours.scanning.disabled = True  # the definition is installed before us; nobody else's matter
    ours.peering.standalone = True
    ours.watching.server_timeout = settings.watch_seconds
    ours.watching.client_timeout = settings.watch_seconds + 10
    ours.watching.connect_timeout = 10
    ours.networking.request_timeout = 30
    ours.networking.connect_timeout = 10
    return ours


async def connection_info(server: ApiServer) -> Any:
    """The credentials of our own client, for kopf's; asked for again when the API server refuses them."""
    ours = server.configuration
    authorization = await ours.get_api_key_with_prefix("BearerToken", alias="authorization")
    scheme, _, token = (authorization or "").partition(" ")
    return kopf.ConnectionInfo(
        server=ours.host,
        ca_path=ours.ssl_ca_cert,
        insecure=not ours.verify_ssl,
        scheme=scheme.capitalize() if token else None,
        token=token or scheme or None,
        certificate_path=ours.cert_file,
        private_key_path=ours.key_file,
    )
