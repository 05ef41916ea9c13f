"""An api in this process whose router is played by the test: it says which backend gets a request."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import aiohttp

from services.api.state import ApiState
from shared.states import JobState
from shared.store.records import ClaimOutcome
from tests.kit.api_fixture import Answer, api_config, serving, state_on
from tests.kit.store_fixture import MODEL, Store, order
from tests.kit.waiting import wait_until

CHAT: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 8}
STREAM = {**CHAT, "stream": True}


@dataclass
class Desk:
    """The api's address, a client, and what a router can do."""

    store: Store
    state: ApiState
    url: str
    http: aiohttp.ClientSession
    _granted: int = field(default=0)

    async def post(
        self, body: Mapping[str, Any], path: str = "/v1/chat/completions", **headers: str
    ) -> Answer:
        """An answer, read to its end."""
        async with self.http.post(self.url + path, json=body, headers=headers) as got:
            return Answer(got.status, got.headers, await got.text())

    def asks(
        self, body: Mapping[str, Any], path: str = "/v1/chat/completions", **headers: str
    ) -> asyncio.Task[Answer]:
        """The same, under way."""
        return asyncio.create_task(self.post(body, path, **headers))

    async def waiting(self) -> str:
        """The id of the job that waits."""

        async def found() -> str | None:
            jobs = await self.store.jobs.list_newest(state=JobState.QUEUED, limit=1)
            return jobs[0].job_id if jobs else None

        return await wait_until(found, "a job waits")

    async def grant(self, url: str, **changes: str) -> str:
        """Give the waiting job to the backend at ``url``, under a lease of 3 s; the job's id."""
        job_id = await self.waiting()
        job = await self.store.job(job_id)
        self._granted += 1
        fields = {
            "model": MODEL,
            "backend": "llama_cpp",
            "url": url,
            "upstream_name": MODEL,
            "gpu": "host/0",
            "code": "chosen",
            "reason": "it fits – well",
            "tries": job.fields.get("tries", "0"),
            **changes,
        }
        grant = tuple(item for pair in fields.items() for item in pair)
        claim = order(job_id, f"n{self._granted}", model=fields["model"], lease_ms=3000)

        async def claimed() -> bool:
            await self.store.jobs.promote()
            outcome = (await self.store.jobs.claim(replace(claim, grant=grant))).outcome
            return outcome is ClaimOutcome.CLAIMED

        await wait_until(claimed, f"job {job_id} can be claimed for {fields['model']}")
        return job_id

    async def ended(self, job_id: str) -> Mapping[str, str]:
        """The fields of a job once it has ended."""

        async def over() -> Mapping[str, str] | None:
            job = await self.store.job(job_id)
            return job.fields if job.state not in (JobState.QUEUED, JobState.RUNNING) else None

        return await wait_until(over, f"job {job_id} ends")

    async def result(self, job_id: str) -> Any:
        """What is stored of a success."""
        await self.ended(job_id)
        return json.loads((await self.store.job(job_id)).result or "null")


@asynccontextmanager
async def desk(
    store: Store, directory: Path, *, models: Sequence[Mapping[str, Any]] = (), **sections: Mapping[str, Any]
) -> AsyncIterator[Desk]:
    """An api that serves the models of ``api_config`` (alpha, beta), taken for alive however slow it is."""
    config = api_config(store.url, directory, **sections)
    # Whatever it would decide, it is the test that decides.
    config["api"] = {"fast_path": False, **config["api"]}
    state = state_on(store, {**config, "models": list(models) or config["models"]})
    await state.registry.publish()
    instance, _, boot = state.gateway.holder.rpartition(".")
    entry = {"boot": boot, "heartbeat_ms": await store.now_ms() + 600_000, "service": "api"}
    await store.redis.hset(store.keys.services, instance, json.dumps(entry))
    async with serving(state) as url, aiohttp.ClientSession() as http:
        await wait_until(lambda: state.gateway.ready, "the gateway is ready")
        yield Desk(store, state, url, http)
