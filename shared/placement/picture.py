"""A picture of the fleet that is young enough to decide on, read again when it is not."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from dataclasses import replace

from shared.config import Settings
from shared.decision.slots import with_slot
from shared.decision.snapshot import Snapshot
from shared.errors import StoreUnavailable
from shared.snapshots import snapshot_of
from shared.store.fleet import FleetStore
from shared.store.records import View

FRESH_S = 0.2
"""How old it may be. Samples come once a second; what counts at once (slots, levels, the breaker, the
registration) is checked again by the script that starts a job."""
_READ_EVERY_S = 0.17
_WARM_S = 2.0
"""How long after it was last asked for a picture is kept young: 6 reads a second of some 0.3 ms."""
_REST_S = 0.05


class Picture:
    """The fleet at ``read_at`` (monotonic), kept up to date with what this process begins and ends."""

    def __init__(self, view: View, snapshot: Snapshot, read_at: float) -> None:
        self.view = view
        self.read_at = read_at
        self.models = {entry.registration.name: entry for entry in view.models}
        self._read = snapshot
        self._ours: dict[str, int] = {}
        self._snapshots = {frozenset[tuple[str, int]](): snapshot}

    @property
    def view_now(self) -> View:
        """The view, with the time that it is by now."""
        return replace(self.view, now_ms=self.view.now_ms + round((time.monotonic() - self.read_at) * 1000))

    @property
    def snapshot(self) -> Snapshot:
        """The fleet as it is now, as far as this process knows; the same object whenever it is the same."""
        ours = frozenset(self._ours.items())
        known = self._snapshots.get(ours)
        if known is None:
            known = self._read
            for model, change in ours:
                known = with_slot(known, model, change)
            self._snapshots[ours] = known
        return known

    def count(self, model: str, change: int) -> None:
        """One more or one less in flight."""
        entry = self._read.models.get(model)
        if entry is None:
            return
        # Never fewer than none: what ends now may have been gone already when the picture was read.
        change = max(-entry.in_flight, self._ours.pop(model, 0) + change)
        if change:
            self._ours[model] = change


class Pictures:
    """The newest picture, shared by all who ask."""

    def __init__(self, fleet: FleetStore, settings: Settings) -> None:
        self._fleet = fleet
        self._settings = settings
        self._newest: Picture | None = None
        self._reading: asyncio.Task[Picture] | None = None
        self._rests_until = 0.0
        self._asked_at = -_WARM_S
        self._asked = asyncio.Event()

    async def run(self) -> None:
        """Keep a picture at hand while it is asked for, so that nobody waits for one; until cancelled."""
        while True:
            await self._asked.wait()
            if time.monotonic() - self._asked_at > _WARM_S:
                self._asked.clear()
                continue
            await asyncio.sleep(_READ_EVERY_S)
            with suppress(StoreUnavailable):  # who asks next is told
                await self._reading_now()

    @property
    def rest(self) -> bool:
        """Whether ``refused`` was said a moment ago."""
        return time.monotonic() < self._rests_until

    async def fresh(self) -> Picture:
        """A picture that is young enough; raises ``StoreUnavailable``."""
        newest, now = self._newest, time.monotonic()
        self._asked_at = now
        self._asked.set()
        if newest is not None and now - newest.read_at < FRESH_S:
            return newest
        return await self._reading_now()

    def refused(self) -> None:
        """What was decided did not hold: others wait, or the fleet is not what it was. For a moment it is
        of no use to decide ahead of the queue.
        """
        self._newest = None
        self._rests_until = time.monotonic() + _REST_S

    def took(self, model: str) -> Picture | None:
        """An attempt of this process on ``model`` begins; where it was counted."""
        if self._newest is not None:
            self._newest.count(model, 1)
        return self._newest

    def left(self, model: str) -> None:
        """An attempt of this process on ``model`` is over."""
        if self._newest is not None:
            self._newest.count(model, -1)

    async def _reading_now(self) -> Picture:
        # All that come meanwhile wait for the same reading; one that leaves takes nobody's.
        if self._reading is None:
            self._reading = asyncio.create_task(self._read())
            self._reading.add_done_callback(self._read_is_over)
        return await asyncio.shield(self._reading)

    async def _read(self) -> Picture:
        read_at = time.monotonic()
        view = await self._fleet.view(heads=0)
        self._newest = Picture(view, snapshot_of(view, self._settings), read_at)
        return self._newest

    def _read_is_over(self, task: asyncio.Task[Picture]) -> None:
        self._reading = None
        if not task.cancelled():
            task.exception()  # whoever waits is told
