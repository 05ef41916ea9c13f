"""Real llama.cpp behind the whole stack, and OpenAI's own client of both."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import openai
import pytest
import pytest_asyncio

from shared.store.server import EmbeddedRedis
from tests.kit.backends import busy_slots
from tests.kit.configs import free_ports
from tests.kit.llama_server import LlamaServer
from tests.kit.openai_client import openai_client
from tests.kit.recording_proxy import RecordingProxy, recording_proxy
from tests.kit.redis_fixture import empty
from tests.kit.stack import Json, Stack, running_stack
from tests.kit.waiting import wait_until

BOUND = 2
"""Jobs that may wait."""
MEDIX_SLOTS = 1


@dataclass(frozen=True)
class OpenAiStack:
    """``client`` asks us; ``direct`` asks the server that is registered under a name.

    ``small`` is called so on its server, too; ``bi-medix2`` (and ``clinic/medix``) is ``large`` there, has
    one slot and serves MedicalQA; ``embedder`` only embeds. ``proxies`` stand before their servers.
    """

    stack: Stack
    client: openai.AsyncOpenAI
    direct: Mapping[str, openai.AsyncOpenAI]
    urls: Mapping[str, str]
    proxies: Mapping[str, RecordingProxy]

    @property
    def recorded(self) -> RecordingProxy:
        """What came to ``small``."""
        return self.proxies["small"]

    @property
    def base_url(self) -> str:
        return f"{self.stack.api}/v1"

    async def busy(self, name: str, slots: int) -> None:
        """Wait until so many slots of a model's server generate."""

        async def reached() -> bool:
            return await busy_slots(self.stack.http, self.urls[name]) == slots

        await wait_until(reached, f"{slots} slots of {name} are busy")

    async def newest(self) -> str:
        """The id of the job that was submitted last."""
        return (await self.stack.jobs.list_newest(state=None, limit=1))[0].job_id

    async def waiting(self, count: int) -> None:
        """Wait until so many jobs wait."""

        async def reached() -> bool:
            return (await self.stack.jobs.counts())[0] == count

        await wait_until(reached, f"{count} jobs wait")


@pytest.fixture(scope="session")
def embedding_llama(small_model: Path) -> Iterator[LlamaServer]:
    """A running llama.cpp that embeds with the small model."""
    with LlamaServer(small_model, alias="embedder", flags=("--embeddings",)) as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def openai_stack(
    tmp_path_factory: pytest.TempPathFactory,
    redis_server: EmbeddedRedis,
    small_llama: LlamaServer,
    large_llama: LlamaServer,
    embedding_llama: LlamaServer,
) -> AsyncIterator[OpenAiStack]:
    """One stack for all tests of a module, which run in the module's loop; every slot is given back."""
    empty(redis_server.url)
    urls = {"small": small_llama.url, "bi-medix2": large_llama.url, "embedder": embedding_llama.url}
    directory = tmp_path_factory.mktemp("openai")
    async with AsyncExitStack() as leaving:
        proxies = {
            name: await leaving.enter_async_context(recording_proxy(url)) for name, url in urls.items()
        }
        config = _config({name: proxy.url for name, proxy in proxies.items()})
        services = ("monitor", "router", "api")
        stack = await leaving.enter_async_context(
            running_stack(directory, redis_server.url, config, services)
        )
        clients = {name: openai_client(f"{url}/v1") for name, url in urls.items()}
        ours = openai_client(f"{stack.api}/v1")
        for client in (ours, *clients.values()):
            leaving.push_async_callback(client.close)
        yield OpenAiStack(stack, ours, clients, urls, proxies)
        await _all_free(stack)


def _config(urls: Mapping[str, str]) -> Json:
    agents = {"small": ["Chat"], "bi-medix2": ["MedicalQA"], "embedder": ["Embedding"]}
    models: list[Json] = [
        {"name": name, "url": url, "vram_gb": 0.5, "agent_types": agents[name]} for name, url in urls.items()
    ]
    models[1] |= {"upstream_name": "large", "serves": ["bi-medix2", "clinic/medix"], "slots": MEDIX_SLOTS}
    return {
        "api": {"port": free_ports(1)[0]},
        "gpu": {"source": "none", "interval_s": 0.2},
        "queue": {"bound": BOUND},
        "models": models,
    }


async def _all_free(stack: Stack) -> None:
    async def free() -> bool:
        return not any([await stack.in_flight(model.name) for model in stack.settings.models])

    await wait_until(free, "every slot is given back")
