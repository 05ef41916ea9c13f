"""A llama.cpp in router mode, from answers recorded of the real one, that tells whoever loads a model."""

from __future__ import annotations

from typing import Any, Self

from aiohttp import web

HEADERS = {"Server": "llama.cpp"}


class LlamaRouter:
    """``models``: name -> status. ``loaded_by`` lists the questions that loaded or woke a model."""

    def __init__(self, **models: str) -> None:
        self.models = models
        self.failed: dict[str, int] = {}
        self.running = 0
        self.goes_after_listing = False
        self.asked: list[str] = []
        self.loaded_by: list[str] = []
        app = web.Application()
        app.router.add_get("/health", self._health)
        app.router.add_get("/models", self._models)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/props", self._props)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/slots", self._slots)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)

    async def __aenter__(self) -> Self:
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def _health(self, request: web.Request) -> web.Response:
        self.asked.append(request.path_qs)
        return _json({"status": "ok"})

    async def _models(self, request: web.Request) -> web.Response:
        self.asked.append(request.path_qs)
        data = [self._entry(name, status) for name, status in self.models.items()]
        if self.goes_after_listing:
            self.models = dict.fromkeys(self.models, "unloaded")
        return _json({"data": data, "object": "list"})

    def _entry(self, name: str, status: str) -> dict[str, Any]:
        args = ["llama-server", "--alias", name, "--port", "0"]
        more = {"failed": True, "exit_code": self.failed[name]} if name in self.failed else {}
        return {
            "id": name,
            "object": "model",
            "owned_by": "llamacpp",
            "source": "models_dir",
            "can_remove": False,
            "status": {"value": status, "args": args, **more},
        }

    async def _props(self, request: web.Request) -> web.Response:
        if "model" not in request.query:
            self.asked.append(request.path_qs)
            return _json({"role": "router", "max_instances": 2, "models_autoload": True, "model_alias": ""})
        return self._forward(request) or _json(
            {
                "default_generation_settings": {"params": {}, "n_ctx": 2048},
                "total_slots": 3,
                "model_alias": "the child's own alias",
                "is_sleeping": False,
            }
        )

    async def _metrics(self, request: web.Request) -> web.Response:
        lines = f"llamacpp:requests_processing {self.running}\nllamacpp:requests_deferred 0\n"
        return self._forward(request) or web.Response(text=lines, headers=HEADERS)

    async def _slots(self, request: web.Request) -> web.Response:
        slot = {"n_ctx": 2048, "is_processing": True, "n_prompt_tokens": 512}
        return self._forward(request) or _json([slot] * self.running)

    def _forward(self, request: web.Request) -> web.Response | None:
        """The error instead of an answer of the child, if any; loads the model as the real one does."""
        self.asked.append(request.path_qs)
        name = request.query.get("model")
        if name is None:
            return _error("model name is missing from the request")
        if name not in self.models:
            return _error(f"model '{name}' not found")
        if request.query.get("autoload") != "false":
            self.models[name] = "loaded"
            self.loaded_by.append(request.path_qs)
        if self.models[name] == "sleeping" and request.path == "/slots":
            self.models[name] = "loaded"
            self.loaded_by.append(request.path_qs)
        if self.models[name] not in ("loaded", "sleeping"):
            return _error("model is not loaded")
        return None


def _json(body: object) -> web.Response:
    return web.json_response(body, headers=HEADERS)


def _error(message: str) -> web.Response:
    error = {"code": 400, "message": message, "type": "invalid_request_error"}
    return web.json_response({"error": error}, status=400, headers=HEADERS)
