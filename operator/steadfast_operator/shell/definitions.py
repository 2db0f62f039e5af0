"""Waits until the API server serves our kinds: moments after their definitions were created it does not yet.

`__main__.py` waits so, because kopf asks once and would never hear of a job. The chart's job before its first profiles
is `python -m steadfast_operator.shell.definitions clustertrainingprofiles.steadfast.dev`.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Collection

from steadfast_operator.api.crd import VERSION
from steadfast_operator.shell.api_server import ApiServer, RefusedError
from steadfast_operator.shell.ports import ClusterError

_log = logging.getLogger(__name__)


async def await_definitions(server: ApiServer, names: Collection[str], *, pause_seconds: float = 0.5) -> None:
    """Return as soon as the kinds of these definitions are served; a definition's name is its plural and its group."""
    told = ""
    while lack := await _lack(server, names):
        if lack != told:
            _log.warning("Waiting for the definitions of our kinds: %s", lack)
        told = lack
        await asyncio.sleep(pause_seconds)


async def _lack(server: ApiServer, names: Collection[str]) -> str:
    """What is not there yet, in words; empty: nothing."""
    try:
        missing = [name for name in names if not await _is_served(server, name)]
    except ClusterError as error:
        return str(error)
    return f"{', '.join(missing)} not served in {VERSION}; installed?" if missing else ""


async def _is_served(server: ApiServer, name: str) -> bool:
    plural, _, group = name.partition(".")
    groups = (await server.call("GET", "/apis"))["groups"]
    if group not in {each["name"] for each in groups}:  # the list of groups learns of a new one last
        return False
    try:
        served = (await server.call("GET", f"/apis/{group}/{VERSION}"))["resources"]
    except RefusedError as error:
        if error.status == 404:
            return False
        raise
    return plural in {each["name"] for each in served}


async def _run(names: Collection[str]) -> None:
    server = await ApiServer.connect()
    try:
        await await_definitions(server, names)
    finally:
        await server.close()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    asyncio.run(_run(sys.argv[1:]))
