"""Every Redis key name, once: Python formats them from here, and the Lua scripts get them from here."""

from __future__ import annotations

from dataclasses import dataclass, field

STATIC: dict[str, str] = {
    "gpu_samples": "gpu:samples",
    "backend_samples": "backend:samples",
    "gpus": "gpus",
    "requests": "jobs:requests",
    "events": "jobs:events",
    "wakes": "jobs:wakes",
    "decisions": "decisions",
    "dead": "jobs:dead",
    "targets": "jobs:targets",
    "holds": "jobs:holds",
    "delayed": "jobs:delayed",
    "leases": "jobs:leases",
    "live": "jobs:live",
    "index": "jobs:index",
    "attached": "jobs:attached",
    "swept": "jobs:swept",
    "models": "models",
    "control": "control",
    "services": "services",
    "api_keys": "api_keys",
    "api_keys_used": "api_keys:used",
}
"""Names without a variable part, below the namespace."""

PATTERNS: dict[str, str] = {
    "gpu": "gpu:{}",
    "gpu_level": "gpu:{}:level",
    "placement": "placement:{}",
    "ready": "jobs:ready:{}",
    "caller": "jobs:caller:{}",
    "ended": "jobs:ended:{}",
    "held_by": "jobs:attached:{}",
    "grants": "grants:{}",
    "job": "job:{}",
    "request": "job:{}:request",
    "result": "job:{}:result",
    "model": "model:{}",
    "idempotency": "idempotency:{}",
    "once": "once:{}",
    "benchmark": "benchmark:{}",
    "benchmarking": "benchmarking:{}",
    "gpu_history": "history:gpu:{}",
    "request_history": "history:requests:{}",
    "key_live": "api_keys:{}:live",
    "key_running": "api_keys:{}:running",
    "key_minute": "api_keys:{}:minute",
}
"""Names with one variable part (a GPU id ``host/index``, a target, a job id, a model name, ...).

The part of ``grants`` and ``held_by`` is an api's ``Presence.holder``: its instance and its boot.
"""

PERMANENT: frozenset[str] = frozenset(STATIC) | {"gpu_level", "placement", "model"}
"""Keys that may live without a TTL; every other key must carry one, or exist only for a time.

``job`` and ``request`` carry a TTL from the moment their job ends; ``ready`` and ``caller`` exist only while
jobs wait, ``held_by`` only while an api has attached jobs, ``key_live`` and ``key_running`` only while an API
key with such limits has jobs.
"""

ROUTER_GROUP = "router"
"""The consumer group on the request stream."""


@dataclass(frozen=True, slots=True)
class Keys:
    """Key names of one namespace (``redis.namespace``; for Redis Cluster a hash tag such as ``{orch}``)."""

    namespace: str = "orch"
    _static: dict[str, str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        names = {name: f"{self.namespace}:{suffix}" for name, suffix in STATIC.items()}
        object.__setattr__(self, "_static", names)

    def static(self, name: str) -> str:
        """The full key of a name in ``STATIC``."""
        return self._static[name]

    def of(self, name: str, part: str) -> str:
        """The full key of a name in ``PATTERNS`` with its variable part."""
        return f"{self.namespace}:{PATTERNS[name].format(part)}"

    @property
    def requests(self) -> str:
        return self._static["requests"]

    @property
    def events(self) -> str:
        return self._static["events"]

    @property
    def wakes(self) -> str:
        return self._static["wakes"]

    @property
    def decisions(self) -> str:
        return self._static["decisions"]

    @property
    def dead(self) -> str:
        return self._static["dead"]

    @property
    def gpu_samples(self) -> str:
        return self._static["gpu_samples"]

    @property
    def backend_samples(self) -> str:
        return self._static["backend_samples"]

    @property
    def control(self) -> str:
        return self._static["control"]

    @property
    def models(self) -> str:
        return self._static["models"]

    @property
    def services(self) -> str:
        return self._static["services"]

    def job(self, job_id: str) -> str:
        return self.of("job", job_id)

    def request(self, job_id: str) -> str:
        return self.of("request", job_id)

    def result(self, job_id: str) -> str:
        return self.of("result", job_id)

    def ready(self, target: str) -> str:
        return self.of("ready", target)

    def model(self, name: str) -> str:
        return self.of("model", name)
