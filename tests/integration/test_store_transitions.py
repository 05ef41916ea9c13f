"""Every transition against every state of a job: outcome, state after it, events; then the call once more."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace

import pytest

from shared.registry import Registration
from shared.store.fleet import BackendSample, GpuSample
from shared.store.records import FailKind, View
from tests.kit.store_dump import violations
from tests.kit.store_fixture import BOUND, GPU, MODEL, Store, new_job, order
from tests.kit.store_states import START, reach

Expected = tuple[str, str, str]
"""Outcome, state after, and events without their ``job.``, separated by spaces."""
_READY = ("queued", "retried", "late_queued", "attached", "orphaned")
_WAITING = (*_READY, "delayed", "due")
_ATTACHED = ("attached_running", "attached_lapsed", "orphaned_running")
_MINE = ("running", "cancel_requested", "lapsed", "late_running", "overstayed", *_ATTACHED)
"""States in which attempt 1 runs under nonce ``n1``."""


@dataclass(frozen=True)
class Transition:
    """One call, its answer wherever it is not allowed, and what it does in the states where it is."""

    call: Callable[[Store, str], Awaitable[object]]
    refused: str
    allowed: Mapping[str, Expected]
    again: Mapping[str, str]
    """The second call's answer where it differs from the first one's."""
    needs_entry: bool = False


def _each(states: tuple[str, ...], *expected: str) -> dict[str, Expected]:
    outcome, after, events = expected
    return dict.fromkeys(states, (outcome, after, events))


def _fail(kind: FailKind, word: str, ended: Mapping[str, Expected]) -> Transition:
    """Where attempt 1 was failed already, that is answered again, whatever kind is said now."""
    settled = {
        **_each(("delayed", "due", "retried"), "QUEUED", "queued", ""),
        "failed": ("FAILED", "failed", ""),
        "dead": ("DEAD", "dead", ""),
    }

    async def call(store: Store, _: str) -> str:
        return await store.fail(kind=kind)

    final = _each(_MINE, word.upper(), word, word)
    return Transition(call, "STALE", {**final, **ended, **settled}, {})


def _requeued(event: str) -> dict[str, Expected]:
    return {
        **_each(("running", "lapsed", *_ATTACHED), "QUEUED", "queued", event),
        **_each(("late_running", "overstayed"), "EXPIRED", "expired", "expired"),
    }


async def _cancel(store: Store, _: str) -> object:
    return (await store.jobs.cancel("j1", "no longer needed"))[0]


async def _claim(store: Store, nonce: str) -> object:
    return (await store.claim(nonce=nonce)).outcome


async def _submit_and_start(store: Store) -> object:
    return (await store.jobs.submit(new_job(), bound=BOUND, start=order())).outcome


_CLAIM_QUEUED: Mapping[str, Expected] = {
    "queued": ("CLAIMED", "running", "started"),
    "late_queued": ("EXPIRED", "expired", "expired"),
    "attached": ("CLAIMED", "running", "started"),
    "orphaned": ("ABANDONED", "failed", "failed"),
}
_VERDICT = ("j1", "no_model", "nothing serves it", ("action", "hold"))

TRANSITIONS: dict[str, Transition] = {
    "submit": Transition(
        lambda store, _: store.submit(),
        "ACCEPTED",
        _each(("absent", "forgotten"), "ACCEPTED", "queued", "queued"),
        {},
    ),
    # Somebody waits here, so none is started but the one that was already.
    "submit and start": Transition(
        lambda store, _: _submit_and_start(store),
        "ACCEPTED",
        {
            **_each(("absent", "forgotten"), "ACCEPTED", "queued", "queued"),
            **_each(_MINE, "STARTED", "running", ""),
        },
        {},
    ),
    "admit_known": Transition(
        lambda store, entry: _outcome(store.jobs.admit_known(entry, "j1")),
        "KNOWN",
        _each(("absent", "forgotten"), "DEAD", "absent", ""),
        {},
        needs_entry=True,
    ),
    "admit_new": Transition(
        lambda store, entry: _outcome(store.jobs.admit_new(entry, new_job(), bound=BOUND, raw="{}")),
        "CREATED",
        _each(("absent", "forgotten"), "CREATED", "queued", "queued"),
        {},
        needs_entry=True,
    ),
    "admit_dead": Transition(
        lambda store, entry: store.jobs.admit_dead(entry, "unreadable", {"a": "b"}), "None", {}, {}, True
    ),
    "claim": Transition(
        lambda store, _: _claim(store, "n1"),
        "GONE",
        {**_CLAIM_QUEUED, **_each(_MINE, "CLAIMED", "running", "")},
        {"late_queued": "GONE", "orphaned": "GONE"},
    ),
    "claim by another": Transition(
        lambda store, _: _claim(store, "n3"),
        "GONE",
        {**_CLAIM_QUEUED, "retried": ("CLAIMED", "running", "started")},
        {"late_queued": "GONE", "orphaned": "GONE"},
    ),
    "hold": Transition(
        lambda store, _: store.jobs.hold(*_VERDICT),
        "GONE",
        _each(_READY, "HELD", "queued", "held"),
        dict.fromkeys(_READY, "SAME"),
    ),
    "reject": Transition(
        lambda store, _: store.jobs.reject(*_VERDICT),
        "GONE",
        _each(_WAITING, "REJECTED", "failed", "failed"),
        {},
    ),
    "renew": Transition(
        lambda store, _: store.jobs.renew("j1", 1, 30_000),
        "STALE",
        {**_each(_MINE, "RENEWED", "running", ""), "cancel_requested": ("CANCEL", "running", "")},
        {},
    ),
    "finish": Transition(
        lambda store, _: store.finish(),
        "STALE",
        {
            **_each(_MINE, "FINISHED", "succeeded", "succeeded"),
            "succeeded": ("FINISHED", "succeeded", ""),
        },
        {},
    ),
    "fail retry": _fail(FailKind.RETRY, "cancelled", _requeued("retried")),
    "fail released": _fail(FailKind.RELEASED, "cancelled", _requeued("requeued")),
    "fail failed": _fail(FailKind.FAILED, "failed", {}),
    "fail cancelled": _fail(FailKind.CANCELLED, "cancelled", {}),
    "fail expired": _fail(FailKind.EXPIRED, "expired", {}),
    "cancel": Transition(
        _cancel,
        "ENDED",
        {
            **_each(_WAITING, "CANCELLED", "cancelled", "cancelled"),
            **_each((*_MINE, "running_other"), "REQUESTED", "running", "cancel_requested"),
            "cancel_requested": ("REQUESTED", "running", ""),
            "cancelled": ("CANCELLED", "cancelled", ""),
            **_each(("absent", "forgotten"), "UNKNOWN", "absent", ""),
        },
        {},
    ),
    "sweep": Transition(
        lambda store, _: store.jobs.sweep(grace_ms=10_000),
        "[]",
        {
            "lapsed": ("['j1']", "queued", "requeued"),
            **_each(("attached_lapsed", "orphaned", "orphaned_running"), "['j1']", "failed", "failed"),
        },
        dict.fromkeys(("lapsed", "attached_lapsed", "orphaned", "orphaned_running"), "[]"),
    ),
    "promote": Transition(
        lambda store, _: _outcome(store.jobs.promote()),
        "[]",
        {"due": ("['j1']", "queued", "")},
        {"due": "[]"},
    ),
    "expire": Transition(
        lambda store, _: store.jobs.expire(overstay_ms=60_000),
        "[]",
        _each(("late_queued", "overstayed"), "['j1']", "expired", "expired"),
        {"late_queued": "[]", "overstayed": "[]"},
    ),
    "trim": Transition(lambda store, _: store.jobs.trim_requests(), "0", {}, {}),
}


async def _outcome(call: Awaitable[tuple[object, object]]) -> object:
    return (await call)[0]


@pytest.mark.parametrize("start", START)
@pytest.mark.parametrize("name", TRANSITIONS)
async def test_a_transition_does_what_the_table_says_and_its_replay_does_nothing_more(
    store: Store, name: str, start: str
) -> None:
    """H1, H2, H21: what is not allowed changes nothing at all; the same call again changes nothing more."""
    transition = TRANSITIONS[name]
    await reach(store, start)
    entry = await store.deliver({"v": "1"}) if transition.needs_entry else ""
    outcome, after, events = transition.allowed.get(start, (transition.refused, START[start][0], ""))
    kinds = await store.kinds()
    before = await store.dump()

    first = str(await transition.call(store, entry))
    once = await store.dump()

    assert (first, await store.state()) == (outcome, after)
    assert await store.kinds() == kinds + events.split()
    # An admit settles its entry in any case; a renewal, alone, moves a lease.
    settled = (store.keys.requests, store.keys.dead) if transition.needs_entry else ()
    leases = (store.keys.static("leases"),) if name == "renew" else ()
    # A sweep notes when it was: silence tells nothing after a time without any.
    clock = (store.keys.static("swept"),) if name == "sweep" else ()
    if start not in transition.allowed:
        assert once.without(*settled, *clock) == before.without(*settled, *clock)
    if transition.needs_entry:
        assert f"router {entry}" not in once.pending[store.keys.requests]

    second = str(await transition.call(store, entry))
    twice = await store.dump()

    assert second == transition.again.get(start, outcome)
    assert twice.without(*leases, *clock) == once.without(*leases, *clock)


_SAMPLE = GpuSample(
    GPU, "boot", 1, 0, {"memory_used_mb": "10"}, {"pressure": "low", "full": "0", "thermal": "normal"}
)
FLEET: dict[str, tuple[Callable[[Store], Awaitable[object]], str, str]] = {
    "gpu_sample": (
        lambda store: store.fleet.publish_gpu(_SAMPLE, ttl_s=60),
        "('STORED', 1)",
        "('REPLAY', 1)",
    ),
    "backend_sample": (
        lambda store: store.fleet.publish_backend(BackendSample(MODEL, "boot", 1, 0, {"slots": "4"})),
        "STORED",
        "REPLAY",
    ),
    "register": (
        lambda store: store.fleet.register([Registration(name=MODEL, port=1)], replace_file=True),
        "['alpha']",
        "[]",
    ),
    "heartbeat": (lambda store: store.fleet.heartbeat("r1", "boot", {"service": "router"}), "None", "None"),
    "retire": (lambda store: store.fleet.retire("router-1", "boot"), "None", "None"),
    "view": (lambda store: _size(store.fleet.view(heads=8)), "1", "1"),
}
"""Call, its answer, and the answer to the same call again."""


async def _size(view: Awaitable[View]) -> int:
    return len((await view).gpus)


@pytest.mark.parametrize("name", FLEET)
async def test_what_is_said_of_the_fleet_counts_once_and_leaves_jobs_alone(store: Store, name: str) -> None:
    call, answer, again = FLEET[name]
    for start in START:
        one = store.elsewhere(f"orch-{start}")
        await reach(one, start)
        await one.fleet.publish_gpu(replace(_SAMPLE, gpu="host/1"), ttl_s=60)
        await one.fleet.heartbeat("router-1", "boot", {})
        before = await one.dump()

        first = str(await call(one))
        once = await one.dump()
        second = str(await call(one))
        twice = await one.dump()

        assert (first, second) == (answer, again)
        written = ("gpus", "gpu_samples", "backend_samples", "models", "control", "services")
        own = [one.keys.static(part) for part in written]
        own += [one.keys.of(part, GPU) for part in ("gpu", "gpu_level")]
        own += [name for name in once.hashes if name.startswith(one.keys.of("gpu_history", GPU))]
        slots = before.hashes.get(one.keys.model(MODEL), {}).get("in_flight")
        own += [key for key in once.hashes if key.startswith(f"{one.keys.namespace}:history:")]
        assert once.hashes.get(one.keys.model(MODEL), {}).get("in_flight") == slots
        model = one.keys.model(MODEL)
        assert once.without(*own, model) == before.without(*own, model)
        assert twice.without(one.keys.services) == once.without(one.keys.services)
        assert violations(twice, one.keys) == []
