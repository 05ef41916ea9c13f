"""One completion on its slot: reads the prompt, writes token by token, goes wrong where it was told to."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing

from aiohttp import web
from pydantic import JsonValue

from services.simulator.answers import DONE, Answer, Measured, event, pieces
from services.simulator.asks import Ask, Refusal
from services.simulator.faults import Fault, FaultKind
from services.simulator.pace import INSTANT_S, Pace
from services.simulator.slots import Slot
from services.simulator.state import ModelState

HEADERS: Mapping[str, str] = {"Server": "llama.cpp (simulated)", "X-Simulated": "true"}


class Serving:
    """One completion while it holds ``slot``; ``fault`` strikes it, a hang lasts until ``healed``."""

    def __init__(
        self, model: ModelState, ask: Ask, slot: Slot, fault: Fault | None, healed: asyncio.Event
    ) -> None:
        self._model = model
        self._ask = ask
        self._slot = slot
        self._fault = fault
        self._healed = healed
        self._measured = Measured(ask.prompt_tokens)
        self._answer = Answer(model.name, ask, model.counters.received)
        self._pieces = pieces(model.name, ask)
        slot.task, slot.stream, slot.max_tokens = model.counters.received, ask.stream, ask.max_tokens
        slot.prompt_tokens, slot.decoded = ask.prompt_tokens, 0

    async def respond(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer; raises ``Refusal``, or ``ConnectionAbortedError`` once it has cut the client off."""
        await self._prefill()
        if self._fault is not None and self._fault.kind is FaultKind.HANG and self._strike_at == 0:
            await self._healed.wait()  # before the headers
        return await (self._stream(request) if self._ask.stream else self._whole(request))

    async def _prefill(self) -> None:
        started = time.monotonic()
        wait_s = self._ask.prompt_tokens / self._model.prompt_rate(self._fault)
        if wait_s >= INSTANT_S:
            await asyncio.sleep(wait_s)
        self._measured.prompt_s = time.monotonic() - started

    async def _stream(self, request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse(headers={**HEADERS, "Content-Type": "text/event-stream"})
        response.force_close()  # llama.cpp closes after a stream
        await response.prepare(request)
        ready = self._answer.opening()
        last = len(self._pieces)
        try:
            async with aclosing(self._generate(request)) as batches:
                async for begin, end in batches:
                    ready += self._answer.tokens(self._pieces[begin:end])
                    if end < last or self._strike_at is not None:
                        await response.write(ready)
                        ready = b""
        except Refusal as refusal:
            await response.write(event(refusal.body) + DONE)
        else:
            self._account()
            await response.write(ready + self._answer.closing(self._measured))
        await response.write_eof()
        return response

    async def _whole(self, request: web.BaseRequest) -> web.StreamResponse:
        async with aclosing(self._generate(request)) as batches:
            async for _ in batches:
                pass
        self._account()
        text = "".join(self._pieces)
        return web.json_response(self._answer.whole(text, self._measured), headers=HEADERS)

    async def _generate(self, request: web.BaseRequest) -> AsyncGenerator[tuple[int, int], None]:
        """Yield the ranges of tokens as they fall due; the first one comes with the end of the prompt."""
        total, strike_at = len(self._pieces), self._strike_at
        pace = Pace(total, self._model.output_rate(self._fault))
        done = 0
        while done < total:
            if done == strike_at:
                await self._strike(request)
            end = pace.due(done, strike_at)
            self._decoded(end, pace.elapsed_s)
            yield done, end
            done = end
            await asyncio.sleep(pace.wait_s(done))
        if done == strike_at:
            await self._strike(request)

    @property
    def _strike_at(self) -> int | None:
        """After how many tokens the fault strikes, None if it never does."""
        return None if self._fault is None else self._fault.strikes_at(len(self._pieces))

    async def _strike(self, request: web.BaseRequest) -> None:
        fault = self._fault
        if fault is None:
            return
        if fault.kind is FaultKind.HANG:
            await self._healed.wait()
        elif fault.kind is FaultKind.SSE_ERROR:
            raise Refusal(fault.status, "simulated failure in the middle of the answer", "server_error")
        elif fault.kind is FaultKind.DIE_MID_STREAM:
            if request.transport is not None:
                request.transport.abort()
            raise ConnectionAbortedError("simulated death in the middle of the answer")

    def _decoded(self, count: int, output_s: float) -> None:
        self._model.counters.decodes += count - self._slot.decoded
        self._slot.decoded = self._measured.output_tokens = count
        self._measured.output_s = output_s

    def _account(self) -> None:
        counters, measured = self._model.counters, self._measured
        counters.served += 1
        counters.prompt_tokens += measured.prompt_tokens
        counters.prompt_s += measured.prompt_s
        counters.output_tokens += measured.output_tokens
        counters.output_s += measured.output_s


def problem(refusal: Refusal, server: Mapping[str, str] = HEADERS) -> web.Response:
    """The HTTP answer that a refusal stands for, with the headers of that ``server``."""
    headers = dict(server)
    if refusal.retry_after_s is not None:
        headers["Retry-After"] = f"{refusal.retry_after_s:g}"
    body: dict[str, JsonValue] = refusal.body
    return web.json_response(body, status=refusal.status, headers=headers)
