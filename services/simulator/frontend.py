"""The HTTP face of one simulated model: llama.cpp's endpoints."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

from aiohttp import web
from pydantic import JsonValue

from services.simulator import endpoints
from services.simulator.answers import FINGERPRINT
from services.simulator.asks import Refusal, count_tokens, invalid, parse_ask, parse_object
from services.simulator.faults import Fault, FaultKind
from services.simulator.serving import HEADERS, Serving, problem
from services.simulator.state import ModelState
from shared.states import Residence

_EMBEDDING_DIMENSIONS = 8


class Frontend:
    """Answers the requests to one model."""

    def __init__(self, model: ModelState) -> None:
        self._model = model
        self._routes: dict[tuple[str, str], Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]] = {
            ("GET", "/health"): self._health,
            ("GET", "/props"): self._props,
            ("GET", "/slots"): self._slots,
            ("GET", "/metrics"): self._metrics,
            ("GET", "/v1/models"): self._models,
            ("POST", "/tokenize"): self._tokenize,
            ("POST", "/v1/completions"): self._completions,
            ("POST", "/v1/chat/completions"): self._chat_completions,
            ("POST", "/v1/embeddings"): self._embeddings,
        }

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request."""
        try:
            if self._model.starting:
                raise Refusal(503, "Loading model", "unavailable_error")
            route = self._routes.get((request.method, request.path))
            if route is None:
                raise Refusal(404, "File Not Found", "not_found_error")
            return await route(request)
        except Refusal as refusal:
            return problem(refusal)

    async def _health(self, _: web.BaseRequest) -> web.Response:
        return _json({"status": "ok"})

    async def _props(self, _: web.BaseRequest) -> web.Response:
        return _json(endpoints.props(self._model))

    async def _slots(self, request: web.BaseRequest) -> web.Response:
        if self._model.residence is Residence.SLEEPING:
            await self._model.ready()  # as in the real one, looking at the slots wakes it
        pool = self._model.pool
        if request.query.get("fail_on_no_slot") and pool.running == len(pool.slots):
            raise Refusal(503, "no slot available", "unavailable_error")
        return _json(endpoints.slots(self._model))

    async def _metrics(self, _: web.BaseRequest) -> web.Response:
        headers = {**HEADERS, "Content-Type": "text/plain; version=0.0.4"}
        return web.Response(body=endpoints.metrics(self._model).encode(), headers=headers)

    async def _models(self, _: web.BaseRequest) -> web.Response:
        return _json(endpoints.models(self._model))

    async def _tokenize(self, request: web.BaseRequest) -> web.Response:
        content = parse_object(await request.content.read()).get("content", "")
        if not isinstance(content, str):
            raise invalid("[json.exception.type_error.302] type must be string")
        return _json({"tokens": list(range(count_tokens(content)))})

    async def _completions(self, request: web.BaseRequest) -> web.StreamResponse:
        return await self._complete(request, chat=False)

    async def _chat_completions(self, request: web.BaseRequest) -> web.StreamResponse:
        return await self._complete(request, chat=True)

    async def _complete(self, request: web.BaseRequest, *, chat: bool) -> web.StreamResponse:
        model = self._model
        ask = parse_ask(await request.content.read(), chat=chat, context_tokens=model.context_tokens)
        model.counters.received += 1
        fault, healed = model.take_fault(), model.healed
        if fault is not None and fault.kind is FaultKind.STATUS:
            raise _told_to(fault)
        try:
            await model.ready()
            async with model.pool.slot() as slot:
                return await Serving(model, ask, slot, fault, healed).respond(request)
        except (asyncio.CancelledError, ConnectionError):
            model.counters.abandoned += 1
            raise

    async def _embeddings(self, request: web.BaseRequest) -> web.Response:
        given = parse_object(await request.content.read()).get("input")
        texts = [given] if isinstance(given, str) else given
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts) or not texts:
            raise invalid('"input" must be a string or a list of strings')
        tokens = sum(count_tokens(text) for text in texts)
        return _json(
            {
                "object": "list",
                "model": self._model.name,
                "data": [self._embedding(index, text) for index, text in enumerate(texts)],
                "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
                "system_fingerprint": FINGERPRINT,
            }
        )

    def _embedding(self, index: int, text: str) -> JsonValue:
        draw = random.Random(f"{self._model.name}/{text}")
        vector: list[JsonValue] = [draw.uniform(-1.0, 1.0) for _ in range(_EMBEDDING_DIMENSIONS)]
        return {"object": "embedding", "index": index, "embedding": vector}


def _told_to(fault: Fault) -> Refusal:
    refusal = Refusal(fault.status, f"simulated fault: status {fault.status}", "simulated_fault")
    refusal.retry_after_s = fault.retry_after_s
    return refusal


def _json(body: JsonValue) -> web.Response:
    return web.json_response(body, headers=HEADERS)
