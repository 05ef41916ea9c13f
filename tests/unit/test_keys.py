"""Key names: all below the namespace, none twice, and each either permanent or meant to go."""

from __future__ import annotations

import pytest

from shared.config import RedisSettings
from shared.keys import PATTERNS, PERMANENT, STATIC, Keys

PUBLISHED = {
    "gpu_samples": "orch:gpu:samples",
    "backend_samples": "orch:backend:samples",
    "requests": "orch:jobs:requests",
    "events": "orch:jobs:events",
    "decisions": "orch:decisions",
    "dead": "orch:jobs:dead",
    "targets": "orch:jobs:targets",
    "delayed": "orch:jobs:delayed",
    "leases": "orch:jobs:leases",
    "models": "orch:models",
    "control": "orch:control",
    "services": "orch:services",
}
"""People type these into redis-cli: they can't change."""


def test_published_names_stay_as_they_are() -> None:
    keys = Keys()
    assert {name: keys.static(name) for name in PUBLISHED} == PUBLISHED
    assert keys.job("9f") == "orch:job:9f"
    assert keys.request("9f") == "orch:job:9f:request"
    assert keys.result("9f") == "orch:job:9f:result"
    assert keys.ready("auto:Chat") == "orch:jobs:ready:auto:Chat"
    assert keys.model("alpha") == "orch:model:alpha"
    assert keys.of("gpu", "host/0") == "orch:gpu:host/0"
    assert keys.of("gpu_level", "host/0") == "orch:gpu:host/0:level"
    assert keys.of("placement", "host/0") == "orch:placement:host/0"


def test_short_forms_name_the_same_keys() -> None:
    keys = Keys("ns")
    short = ("requests", "events", "decisions", "dead", "gpu_samples", "backend_samples")
    for name in (*short, "control", "models", "services"):
        assert getattr(keys, name) == keys.static(name)


@pytest.mark.parametrize("namespace", ["orch", "{orch}", "a.b-c_1"])
def test_every_key_lies_below_its_namespace(namespace: str) -> None:
    assert RedisSettings(namespace=namespace).namespace == namespace
    keys = Keys(namespace)
    names = [keys.static(name) for name in STATIC] + [keys.of(name, "x") for name in PATTERNS]
    assert all(name.startswith(f"{namespace}:") for name in names)
    assert len(set(names)) == len(names)


def test_a_braced_namespace_puts_all_keys_into_one_slot_of_a_cluster() -> None:
    """Redis Cluster hashes what is between the first braces."""
    keys = Keys("{orch}")
    names = [keys.static(name) for name in STATIC] + [keys.of(name, "{x}") for name in PATTERNS]
    assert {name[name.index("{") : name.index("}")] for name in names} == {"{orch"}


def test_ids_of_gpus_jobs_and_models_never_meet_a_fixed_name() -> None:
    """A GPU's id holds a slash, a job's no colon."""
    keys = Keys()
    fixed = {keys.static(name) for name in STATIC}
    made = {keys.of("gpu", "samples/0"), keys.of("gpu", "gpu/samples"), keys.job("samples")}
    assert fixed.isdisjoint(made | {keys.model("s"), keys.ready("requests"), keys.ready("")})


def test_permanent_keys_are_names_that_exist() -> None:
    assert set(STATIC) | set(PATTERNS) >= PERMANENT
    assert {"job", "request", "result", "ready", "caller", "gpu", "idempotency"}.isdisjoint(PERMANENT)


def test_namespaces_are_told_apart() -> None:
    assert Keys("a") == Keys("a")
    assert Keys("a") != Keys("b")
