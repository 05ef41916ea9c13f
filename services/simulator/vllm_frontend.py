"""The HTTP face of one simulated vLLM server."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from aiohttp import web
from pydantic import JsonValue

from services.simulator.asks import Refusal
from services.simulator.faults import FaultKind
from services.simulator.serving import problem
from services.simulator.vllm_answers import busy, engine_died
from services.simulator.vllm_asks import parse_ask
from services.simulator.vllm_engine import HoldMode
from services.simulator.vllm_metrics import metrics
from services.simulator.vllm_model import VllmModel
from services.simulator.vllm_serving import HEADERS, VllmServing

VERSION = "0.32.0+simulated"
_SLEEP_LEVELS = range(3)
_Route = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
_Choice = TypeVar("_Choice", int, HoldMode)


class VllmFrontend:
    """Answers the requests to one model."""

    def __init__(self, model: VllmModel) -> None:
        self._model = model
        self._routes: dict[tuple[str, str], _Route] = {
            ("GET", "/health"): self._health,
            ("GET", "/ping"): self._health,
            ("GET", "/load"): self._load,
            ("GET", "/version"): self._version,
            ("GET", "/v1/models"): self._models,
            ("GET", "/metrics"): self._metrics,
            ("POST", "/v1/completions"): self._completions,
            ("POST", "/v1/chat/completions"): self._chat_completions,
        }
        self._dev_routes: dict[tuple[str, str], _Route] = {
            ("POST", "/sleep"): self._sleep,
            ("POST", "/wake_up"): self._wake_up,
            ("GET", "/is_sleeping"): self._is_sleeping,
            ("POST", "/pause"): self._pause,
            ("POST", "/resume"): self._resume,
            ("GET", "/is_paused"): self._is_paused,
        }

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request."""
        routes = {**self._routes, **(self._dev_routes if self._model.dev_mode else {})}
        route = routes.get((request.method, request.path))
        if route is None:
            known = any(request.path == path for _, path in routes)
            return _json({"detail": "Method Not Allowed" if known else "Not Found"}, 405 if known else 404)
        try:
            return await route(request)
        except Refusal as refusal:
            return problem(refusal, HEADERS)

    async def _health(self, _: web.BaseRequest) -> web.Response:
        return web.Response(status=503 if self._model.engine.dead else 200, headers=HEADERS)

    async def _load(self, _: web.BaseRequest) -> web.Response:
        return _json({"server_load": self._model.inside})

    async def _version(self, _: web.BaseRequest) -> web.Response:
        return _json({"version": VERSION})

    async def _models(self, _: web.BaseRequest) -> web.Response:
        model = self._model
        entry: dict[str, JsonValue] = {
            "id": model.name,
            "object": "model",
            "created": 0,
            "owned_by": "vllm",
            "root": f"simulated/{model.name}",
            "parent": None,
            "max_model_len": model.context_tokens,
            "simulated": True,
        }
        return _json({"object": "list", "data": [entry]})

    async def _metrics(self, _: web.BaseRequest) -> web.Response:
        model = self._model
        text = metrics(model.name, model.engine, model.measurements)
        headers = {**HEADERS, "Content-Type": "text/plain; version=1.0.0; charset=utf-8"}
        return web.Response(body=text.encode(), headers=headers)

    async def _sleep(self, request: web.BaseRequest) -> web.Response:
        level = _chosen(request, "level", {str(level): level for level in _SLEEP_LEVELS}, 1)
        await self._model.sleep(level, _mode(request))
        return _json({"status": "sleeping", "level": level})

    async def _wake_up(self, request: web.BaseRequest) -> web.Response:
        self._model.wake()
        tags: list[JsonValue] = [*request.query.getall("tags", [])]
        return _json({"status": "awake", "tags": tags or None})

    async def _is_sleeping(self, _: web.BaseRequest) -> web.Response:
        await self._engine_answers()
        return _json({"is_sleeping": self._model.engine.paused})  # true of a pause, too (seen)

    async def _pause(self, request: web.BaseRequest) -> web.Response:
        await self._model.engine.hold(_mode(request))
        return _json({"status": "paused"})

    async def _resume(self, _: web.BaseRequest) -> web.Response:
        if self._model.engine.sleep_level is None:
            self._model.engine.release()
        return _json({"status": "resumed"})

    async def _is_paused(self, _: web.BaseRequest) -> web.Response:
        await self._engine_answers()
        return _json({"is_paused": self._model.engine.paused})  # true of a sleeper, too (seen)

    async def _engine_answers(self) -> None:
        """What is asked of a dead engine is never answered (seen)."""
        if self._model.engine.dead:
            await asyncio.Event().wait()

    async def _completions(self, request: web.BaseRequest) -> web.StreamResponse:
        return await self._complete(request, chat=False)

    async def _chat_completions(self, request: web.BaseRequest) -> web.StreamResponse:
        return await self._complete(request, chat=True)

    async def _complete(self, request: web.BaseRequest, *, chat: bool) -> web.StreamResponse:
        model = self._model
        body = await request.content.read()
        ask = parse_ask(body, chat=chat, name=model.name, context_tokens=model.context_tokens)
        model.counters.received += 1
        fault, healed = model.take_fault(), model.healed
        if model.engine.dead:
            raise engine_died()
        if model.engine.full:
            model.measurements.rejections += 1
            raise busy()
        if fault is not None and fault.kind is FaultKind.STATUS:
            refusal = busy() if fault.status == 503 else _told_to(fault.status)
            refusal.retry_after_s = fault.retry_after_s
            raise refusal
        model.inside += 1
        try:
            with model.engine.sequence(ask.prompt_tokens) as entry:
                return await VllmServing(model, ask, entry, fault, healed).respond(request)
        except (asyncio.CancelledError, ConnectionError):
            model.counters.abandoned += 1
            raise
        finally:
            model.inside -= 1


def _told_to(status: int) -> Refusal:
    return Refusal(status, f"simulated fault: status {status}", "simulated_fault", param=None)


def _mode(request: web.BaseRequest) -> HoldMode:
    return _chosen(request, "mode", {mode.value: mode for mode in HoldMode}, HoldMode.ABORT)


def _chosen(request: web.BaseRequest, name: str, allowed: dict[str, _Choice], default: _Choice) -> _Choice:
    given = request.query.get(name)
    if given is None:
        return default
    if given not in allowed:
        words = f"Input should be one of {', '.join(allowed)}"
        raise Refusal(
            400,
            f"1 validation error:\n  {{'loc': 'query.{name}', 'msg': '{words}', 'input': '{given}'}}",
            "Bad Request",
            param=f"query.{name}",
        )
    return allowed[given]


def _json(body: JsonValue, status: int = 200) -> web.Response:
    return web.json_response(body, status=status, headers=HEADERS)
