"""A backend in a process of its own whose every byte follows from the request, so that all can be checked."""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import aiohttp
from aiohttp import web

from shared.process import ChildProcess
from tests.kit.configs import free_ports
from tests.kit.stack import ROOT
from tests.kit.waiting import wait_until

DONE = b"data: [DONE]\n\n"
_FIELD = "script"
# What a relay might take for the end of an answer, for an error or for a name to be replaced.
_WORDS = (
    "queue",
    "straße",
    "漢字",
    "🙂",
    "slot",
    "data: [DONE]",
    '{"error":',
    '"model":"words"',
    "\\",
    "a\n\nb",
)
_BLOCK = " ".join(random.Random(7).choices(_WORDS, k=20_000))


@dataclass(frozen=True, slots=True)
class Script:
    """The answer that a request asks for: ``events`` events of about ``size`` characters, ``pause_s`` apart.

    ``break_after``: so many whole events and half of the next, then the connection is cut. ``stumbles``: the
    first request for it is answered 500.
    """

    seed: int
    events: int = 20
    size: int = 40
    pause_s: float = 0.0
    break_after: int | None = None
    stumbles: bool = False

    def body(self, model: str, **changes: Any) -> dict[str, Any]:
        """The request for it, as clients send it."""
        messages = [{"role": "user", "content": f"script {self.seed}"}]
        return {"model": model, "messages": messages, "stream": True, _FIELD: asdict(self), **changes}

    def answer(self, model: str) -> Iterator[bytes]:
        """Its events, from a server that calls the model so."""
        chance = random.Random(self.seed)
        head = f'data: {{"id":"words-{self.seed}","model":{json.dumps(model)},"choices":[{{"index":0,"delta":'
        for number in range(self.events):
            start = chance.randrange(len(_BLOCK) - self.size)
            text = json.dumps(f"{number} {_BLOCK[start : start + self.size]}", ensure_ascii=False)
            yield f'{head}{{"content":{text}}},"finish_reason":null}}]}}\n\n'.encode()
        yield f'{head}{{}},"finish_reason":"stop"}}]}}\n\n'.encode()
        yield DONE


class WordServer:
    """One such process, a llama.cpp to whoever looks at it; ``status`` other than 200 is all it answers."""

    def __init__(self, name: str, directory: Path, *, slots: int, status: int = 200) -> None:
        (port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{port}"
        argv = (sys.executable, "-m", __name__, name, str(port), str(slots), str(status))
        environ = {**os.environ, "PYTHONPATH": str(ROOT)}
        self._process = ChildProcess(name, argv, directory / f"{name}.out", environ=environ)

    def __enter__(self) -> Self:
        self._process.launch()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def kill(self) -> None:
        """SIGKILL: whatever it was writing breaks off."""
        self._process.kill()

    def restart(self) -> None:
        """Launch it again on the same port."""
        self._process.launch()

    async def busy(self, http: aiohttp.ClientSession) -> int | None:
        """How many answers it is writing; None while it does not answer."""
        return await self._gauge(http, "llamacpp:requests_processing")

    async def written(self, http: aiohttp.ClientSession) -> int | None:
        """How many events it has got rid of so far."""
        return await self._gauge(http, "words:events_written")

    async def _gauge(self, http: aiohttp.ClientSession, name: str) -> int | None:
        try:
            async with http.get(f"{self.url}/metrics") as answer:
                lines = (await answer.text()).splitlines()
        except aiohttp.ClientError:
            return None
        return next(int(line.split()[1]) for line in lines if line.startswith(name))

    async def ready(self, http: aiohttp.ClientSession) -> None:
        async def answers() -> bool:
            return await self.busy(http) is not None

        await wait_until(answers, f"{self.url} answers", timeout_s=60)


class _Words:
    """The handlers of the process."""

    def __init__(self, slots: int, status: int) -> None:
        self._slots = slots
        self._status = status
        self._running = 0
        self._written = 0
        self._stumbled: set[int] = set()

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/health", self._health)
        app.router.add_get("/props", self._props)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_post("/v1/chat/completions", self._complete)
        return app

    async def _health(self, _: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def _props(self, _: web.Request) -> web.Response:
        settings = {"n_ctx": 4096}
        return web.json_response({"total_slots": self._slots, "default_generation_settings": settings})

    async def _metrics(self, _: web.Request) -> web.Response:
        running, written = self._running, self._written
        return web.Response(text=f"llamacpp:requests_processing {running}\nwords:events_written {written}\n")

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        asked = await request.json()
        script = Script(**asked[_FIELD])
        if self._status != 200:
            return _failure(self._status)
        if script.stumbles and script.seed not in self._stumbled:
            self._stumbled.add(script.seed)
            return _failure(500)
        self._running += 1
        try:
            return await self._stream(request, script, asked["model"])
        finally:
            self._running -= 1

    async def _stream(self, request: web.Request, script: Script, model: str) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        response.force_close()  # as llama.cpp does after a stream
        await response.prepare(request)
        begun = b""
        for number, event in enumerate(script.answer(model)):
            half = len(event) // 2
            # No write ends where an event does, but the last.
            await response.write(begun + event[:half])
            begun = event[half:]
            self._written += 1
            if number == script.break_after and request.transport is not None:
                request.transport.abort()
                return response
            if script.pause_s:
                await asyncio.sleep(script.pause_s)
        await response.write(begun)
        await response.write_eof()
        return response


def _failure(status: int) -> web.Response:
    error = {"code": status, "message": "out of words", "type": "server_error"}
    return web.json_response({"error": error}, status=status)


async def _serve(port: int, slots: int, status: int) -> None:
    runner = web.AppRunner(_Words(slots, status).app(), handler_cancellation=True, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve(*map(int, sys.argv[2:])))
