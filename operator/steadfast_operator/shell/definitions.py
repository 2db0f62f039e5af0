"""Waits until the API server serves our kinds: moments after their definitions were created it does not yet.

`__main__.py` waits so, because kopf asks once and would never hear of a job. The chart's job before its first profiles
is `python -m steadfast_operator.shell.definitions clustertrainingprofiles`.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Collection

from steadfast_operator.api.crd import GROUP, VERSION
from steadfast_operator.shell.api_server import ApiServer, RefusedError
from steadfast_operator.shell.ports import ClusterError

_log = logging.getLogger(__name__)


async def await_definitions(server: ApiServer, plurals: Collection[str], *, pause_seconds: float = 0.5) -> None:
    """Return as soon as the kinds of these plural names are served."""
    told = ""
    while lack := await _lack(server, plurals):
        if lack != told:
            _log.warning("Waiting for the definitions of our kinds: %s", lack)
        told = lack
        await asyncio.sleep(pause_seconds)


async def _lack(server: ApiServer, plurals: Collection[str]) -> str:
    """What is not there yet, in words; empty: nothing."""
    try:
        missing = sorted(set(plurals) - await _served(server))
    except ClusterError as error:
        return str(error)
    return f"{GROUP}/{VERSION} has no {', '.join(missing)}; are they installed?" if missing else ""


async def _served(server: ApiServer) -> set[str]:
    groups = (await server.call("GET", "/apis"))["groups"]
    if GROUP not in {group["name"] for group in groups}:  # the list of groups learns of a new one last
        return set()
    try:
        return {each["name"] for each in (await server.call("GET", f"/apis/{GROUP}/{VERSION}"))["resources"]}
    except RefusedError as error:
        if error.status == 404:
            return set()
        raise


async def _run(plurals: Collection[str]) -> None:
    server = await ApiServer.connect()
    try:
        await await_definitions(server, plurals)
    finally:
        await server.close()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    asyncio.run(_run(sys.argv[1:]))
