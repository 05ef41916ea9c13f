"""The command line with a stack to talk to, started once for a module."""

from __future__ import annotations

import asyncio
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from shared.store.server import EmbeddedRedis
from tests.kit.cli import PROGRAM, Commands, Ended, environment
from tests.kit.configs import free_ports, simulated_config, simulated_model
from tests.kit.redis_fixture import empty
from tests.kit.stack import Stack, running_stack


class Cli:
    """The command line with the settings of one stack."""

    def __init__(self, stack: Stack, commands: Commands) -> None:
        self.environ = environment(ORCH_CONFIG=str(stack.path))
        self._commands = commands
        self._started: list[asyncio.subprocess.Process] = []

    async def __call__(self, *words: str, stdin: bytes = b"") -> Ended:
        return await asyncio.to_thread(self._commands.piped, *words, environ=self.environ, stdin=stdin)

    async def terminal(self, *words: str, columns: int = 160, **changes: str) -> Ended:
        environ = {**self.environ, **changes}
        return await asyncio.to_thread(self._commands.on_terminal, *words, environ=environ, columns=columns)

    async def start(self, *words: str) -> asyncio.subprocess.Process:
        """Start a command that goes on, with pipes; it is killed after the test."""
        process = await asyncio.create_subprocess_exec(
            *PROGRAM, *words, stdout=PIPE, stderr=PIPE, env=self.environ
        )
        self._started.append(process)
        return process

    async def close(self) -> None:
        for process in self._started:
            if process.returncode is None:
                process.kill()
                await process.communicate()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cli_stack(
    redis_server: EmbeddedRedis, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Stack]:
    """One stack for the whole module: alpha answers at once, slow takes minutes."""
    empty(redis_server.url)
    first, second = free_ports(2)
    models = [
        simulated_model("alpha", first),
        simulated_model("slow", second, agent_types=["Slow"], tokens_per_second=5.0),
    ]
    services = ("simulator", "monitor", "router", "api")
    directory = tmp_path_factory.mktemp("cli")
    async with running_stack(directory, redis_server.url, simulated_config(models), services) as stack:
        await stack.ended(await stack.submit(prompt="hi", model="alpha", max_tokens=4))
        yield stack


@pytest_asyncio.fixture(loop_scope="module")
async def cli(cli_stack: Stack, commands: Commands) -> AsyncIterator[Cli]:
    cli = Cli(cli_stack, commands)
    yield cli
    await cli.close()
