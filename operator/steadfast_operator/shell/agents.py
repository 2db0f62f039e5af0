"""Questions to agents over the pod network: `GET /status`, with little patience. `kube.py` asks."""

from __future__ import annotations

import asyncio

import aiohttp

from steadfast_contract.heartbeat import AgentStatus

STATUS_SECONDS = 1.0
"""How long an agent may take to answer."""
AT_ONCE = 64
MAX_BYTES = 65536


class Agents:
    """One HTTP client for the agents of all jobs."""

    def __init__(self, *, seconds: float = STATUS_SECONDS) -> None:
        self._timeout = aiohttp.ClientTimeout(total=seconds)
        self._turn = asyncio.Semaphore(AT_ONCE)
        self._http: aiohttp.ClientSession | None = None

    async def fetch_status(self, host: str, *, port: int, worker: str) -> AgentStatus | None:
        """What the agent of this worker says; None when nobody answers, or somebody else (addresses are reused)."""
        if self._http is None:
            self._http = aiohttp.ClientSession(timeout=self._timeout)
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            async with self._turn, self._http.get(f"http://{address}/status", allow_redirects=False) as reply:
                status = AgentStatus.from_json((await reply.content.read(MAX_BYTES)).decode())
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
            return None
        return status if status.worker == worker else None

    async def close(self) -> None:
        """Close its connections."""
        if self._http is not None:
            await self._http.close()
