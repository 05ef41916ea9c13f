"""The states that a job can be in, each reached through the store's own calls and rewritten times."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from shared.store.records import FailKind
from tests.kit.store_fixture import Store, order

_ENDING = {"max_attempts": "1"}


async def _absent(store: Store) -> None:
    assert await store.state() == "absent"


async def _queued(store: Store) -> None:
    await store.submit()


async def _delayed(store: Store) -> None:
    await store.start()
    await store.fail(delay_ms=60_000)


async def _retried(store: Store) -> None:
    await store.start()
    await store.fail()


async def _due(store: Store) -> None:
    await _delayed(store)
    await store.make_due()


async def _running(store: Store) -> None:
    await store.start()


async def _running_other(store: Store) -> None:
    await store.start()
    await store.lapse_lease()
    await store.jobs.sweep(grace_ms=0)
    await store.jobs.claim(order("j1", "n2", router="router-2"))


async def _cancel_requested(store: Store) -> None:
    await store.start()
    await store.jobs.cancel("j1", "no longer needed")


async def _lapsed(store: Store) -> None:
    await store.start()
    await store.lapse_lease()


async def _late_queued(store: Store) -> None:
    await store.submit()
    await store.pass_deadline()


async def _late_running(store: Store) -> None:
    await store.start()
    await store.pass_deadline()


async def _overstayed(store: Store) -> None:
    await store.start()
    await store.pass_deadline(ago_ms=300_000)


async def _succeeded(store: Store) -> None:
    await store.start()
    await store.finish()


async def _failed(store: Store) -> None:
    await store.start()
    await store.fail(kind=FailKind.FAILED)


async def _dead(store: Store) -> None:
    await store.start(fields=_ENDING)
    await store.fail(charge=True)


async def _cancelled(store: Store) -> None:
    await store.submit()
    await store.jobs.cancel("j1", "no longer needed")


async def _expired(store: Store) -> None:
    await _late_queued(store)
    await store.jobs.expire(overstay_ms=60_000)


async def _forgotten(store: Store) -> None:
    await _succeeded(store)
    await store.forget()


async def _attached(store: Store) -> None:
    await store.attach()


async def _attached_running(store: Store) -> None:
    await store.attach()
    await store.claim()


async def _attached_lapsed(store: Store) -> None:
    await _attached_running(store)
    await store.lapse_lease()


async def _orphaned(store: Store) -> None:
    await store.attach()
    await store.set_holder(alive=False)


async def _orphaned_running(store: Store) -> None:
    await _attached_running(store)
    await store.set_holder(alive=False)


START: dict[str, tuple[str, Callable[[Store], Awaitable[None]]]] = {
    "absent": ("absent", _absent),
    "queued": ("queued", _queued),
    "delayed": ("queued", _delayed),
    "due": ("queued", _due),
    "retried": ("queued", _retried),
    "running": ("running", _running),
    "running_other": ("running", _running_other),
    "cancel_requested": ("running", _cancel_requested),
    "lapsed": ("running", _lapsed),
    "late_queued": ("queued", _late_queued),
    "late_running": ("running", _late_running),
    "overstayed": ("running", _overstayed),
    "attached": ("queued", _attached),
    "attached_running": ("running", _attached_running),
    "attached_lapsed": ("running", _attached_lapsed),
    "orphaned": ("queued", _orphaned),
    "orphaned_running": ("running", _orphaned_running),
    "succeeded": ("succeeded", _succeeded),
    "failed": ("failed", _failed),
    "dead": ("dead", _dead),
    "cancelled": ("cancelled", _cancelled),
    "expired": ("expired", _expired),
    "forgotten": ("absent", _forgotten),
}
"""Start state -> the job's state as stored, and how ``j1`` gets there as attempt 1 under nonce ``n1``.

``running_other``: attempt 2 of another router. ``late``: past its deadline. ``overstayed``: past it by long.
``attached``: its client waits on a connection of an api, which is gone where it is ``orphaned``.
``forgotten``: ended, and kept no longer.
"""


async def reach(store: Store, start: str) -> None:
    """Bring ``j1`` into a start state, beside a running and a waiting job that no call may touch."""
    await store.submit("bystander-1", target="beta")
    await store.jobs.claim(order("bystander-1", "b1", model="beta"))
    await store.submit("bystander-2", target="beta")
    stored, steps = START[start]
    await steps(store)
    assert await store.state() == stored
