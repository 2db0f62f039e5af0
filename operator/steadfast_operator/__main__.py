"""Start the operator: `python -m steadfast_operator`. kopf with our settings, health and metrics over HTTP, no more."""

from __future__ import annotations

import asyncio
import logging
import os
import sys

import kopf
from aiohttp import web
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from steadfast_operator.api.crd import GROUP, PLURAL
from steadfast_operator.core.network import Callers
from steadfast_operator.handlers import build_registry, build_settings
from steadfast_operator.settings import Settings
from steadfast_operator.shell.api_server import ApiServer
from steadfast_operator.shell.definitions import await_definitions
from steadfast_operator.shell.jobs import Jobs
from steadfast_operator.shell.metrics import Metrics


async def serve(server: ApiServer, *, settings: Settings, stop: asyncio.Event | None = None) -> None:
    """Look after the cluster's jobs until `stop` is set; without one until kopf takes a SIGTERM, in the main thread."""
    metrics = Metrics()
    jobs = Jobs(
        server,
        metrics=metrics,
        namespace=settings.namespace,
        watch_seconds=settings.watch_seconds,
        callers=Callers(operator_namespace=settings.operator_namespace, metrics_namespaces=settings.metrics_namespaces),
    )
    runner = await _serve_http(jobs, metrics=metrics, settings=settings)
    try:
        await await_definitions(server, [f"{PLURAL}.{GROUP}"])
        jobs.start()
        await kopf.operator(
            registry=build_registry(jobs, server=server),
            settings=build_settings(settings),
            clusterwide=settings.namespace is None,
            namespaces=[settings.namespace] if settings.namespace else [],
            stop_flag=stop,
        )
    finally:
        await jobs.close()
        await runner.cleanup()
        await server.close()


async def _serve_http(jobs: Jobs, *, metrics: Metrics, settings: Settings) -> web.AppRunner:
    async def healthz(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(_: web.Request) -> web.Response:
        return web.Response(text="ok\n" if jobs.ready else "listing pods\n", status=200 if jobs.ready else 503)

    async def answer_metrics(_: web.Request) -> web.Response:
        return web.Response(body=metrics.to_text(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.add_routes([web.get("/healthz", healthz), web.get("/readyz", readyz), web.get("/metrics", answer_metrics)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, settings.host, settings.port).start()
    return runner


async def _run(settings: Settings) -> None:
    await serve(await ApiServer.connect(), settings=settings)


def main() -> None:
    """Run until SIGTERM."""
    try:
        settings = Settings.from_mapping(os.environ)
    except ValueError as error:
        sys.exit(f"steadfast operator: {error}")
    logging.basicConfig(level=settings.log_level, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("kopf.objects").setLevel(logging.WARNING)  # one line for each event of each job
    asyncio.run(_run(settings))


if __name__ == "__main__":
    main()
