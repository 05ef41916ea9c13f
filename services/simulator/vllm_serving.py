"""One completion inside the simulated vLLM: waits its turn, reads the prompt, writes token by token."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing

from aiohttp import web

from services.simulator.answers import DONE, event, pieces
from services.simulator.asks import Refusal
from services.simulator.faults import Fault, FaultKind
from services.simulator.pace import Pace
from services.simulator.vllm_answers import VllmAnswer, engine_died
from services.simulator.vllm_asks import VllmAsk
from services.simulator.vllm_engine import Aborted, EngineDied, Sequence
from services.simulator.vllm_metrics import Finished
from services.simulator.vllm_model import VllmModel

HEADERS: Mapping[str, str] = {"Server": "uvicorn (simulated)", "X-Simulated": "true"}


class VllmServing:
    """One completion while it is inside as ``entry``; ``fault`` strikes it, a hang lasts until ``healed``."""

    def __init__(
        self, model: VllmModel, ask: VllmAsk, entry: Sequence, fault: Fault | None, healed: asyncio.Event
    ) -> None:
        self._model = model
        self._engine = model.engine
        self._measurements = model.measurements
        self._ask = ask
        self._entry = entry
        self._fault = fault
        self._healed = healed
        self._answer = VllmAnswer(model.name, ask, model.counters.received)
        self._pieces = pieces(model.name, ask)
        self._strike_at = None if fault is None else fault.strikes_at(len(self._pieces))
        self._came = time.monotonic()
        self._queued_s: float | None = None
        self._first_token_s: float | None = None
        self._written = 0

    async def respond(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer; raises ``Refusal``, or ``ConnectionAbortedError`` once it has cut the client off."""
        return await (self._stream(request) if self._ask.stream else self._whole(request))

    async def _stream(self, request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse(headers={**HEADERS, "Content-Type": "text/event-stream; charset=utf-8"})
        if self._fault is not None and self._fault.kind is FaultKind.HANG and self._strike_at == 0:
            await self._healed.wait()
        await response.prepare(request)  # before its turn comes, unlike llama.cpp
        try:
            end = self._answer.finish_reason
            async with aclosing(self._generate(request)) as batches:
                async for begin, done in batches:
                    opening = b"" if begin else self._answer.opening()
                    reason = end if done == len(self._pieces) else None
                    tokens = self._answer.tokens(self._pieces[begin:done], begin, reason)
                    await response.write(opening + tokens)
            await response.write(self._answer.closing(self._written))
        except Aborted:
            await response.write(self._aborted() + DONE)
        except EngineDied:
            await response.write(event(engine_died().body) + DONE)
        except Refusal as refusal:
            await response.write(event(refusal.body) + DONE)
        await response.write_eof()
        return response

    async def _whole(self, request: web.BaseRequest) -> web.StreamResponse:
        end = self._answer.finish_reason
        try:
            async with aclosing(self._generate(request)) as batches:
                async for _ in batches:
                    pass
        except Aborted:
            end = "abort"
            self._finish(end)
        except EngineDied:
            raise engine_died() from None
        text = "".join(self._pieces[: self._written])
        return web.json_response(self._answer.whole(text, self._written, end), headers=HEADERS)

    async def _generate(self, request: web.BaseRequest) -> AsyncGenerator[tuple[int, int], None]:
        """Yield the ranges of tokens as they fall due; raises ``Aborted``, ``EngineDied`` or ``Refusal``."""
        await self._prefill()
        total = len(self._pieces)
        pace = Pace(total, self._model.output_rate(self._fault))
        done = 0
        while done < total:
            if done == self._strike_at:
                await self._strike(request)
            end = pace.due(done, self._strike_at)
            pace.delay(await self._turn(self._ask.prompt_tokens + end))
            self._wrote(end)
            yield done, end
            done = end
            await self._engine.nap(self._entry, pace.wait_s(done))
        if done == self._strike_at:
            await self._strike(request)
        self._finish(self._answer.finish_reason)

    async def _prefill(self) -> None:
        self._queued_s = await self._turn(self._ask.prompt_tokens)
        await self._engine.nap(self._entry, self._ask.prompt_tokens / self._model.prompt_rate(self._fault))
        self._measurements.prompt_tokens += self._ask.prompt_tokens

    async def _turn(self, tokens: int) -> float:
        """Seconds until the engine goes on with this request, with room for so many tokens."""
        asked = time.monotonic()
        await self._engine.turn(self._entry, tokens)
        return time.monotonic() - asked

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
        elif fault.kind is FaultKind.ENGINE_DEATH:
            self._model.kill_engine()
            raise EngineDied

    def _wrote(self, count: int) -> None:
        if self._first_token_s is None:
            self._first_token_s = time.monotonic() - self._came
        self._model.counters.decodes += count - self._written
        self._measurements.generation_tokens += count - self._written
        self._written = count

    def _aborted(self) -> bytes:
        """What an aborted stream ends with: nothing at all if it never began (seen)."""
        self._finish("abort")
        return self._answer.tokens((), self._written, "abort") if self._written else b""

    def _finish(self, reason: str) -> None:
        counters, ask = self._model.counters, self._ask
        if reason != "abort":
            counters.served += 1
            counters.prompt_tokens += ask.prompt_tokens
            counters.output_tokens += self._written
        total_s = time.monotonic() - self._came
        queued_s = total_s if self._queued_s is None else self._queued_s
        self._measurements.finish(
            Finished(reason, ask.prompt_tokens, self._written, queued_s, self._first_token_s, total_s)
        )
