"""The leases of all that this api runs itself, and what their renewals mean for its requests."""

from __future__ import annotations

from services.api.gateway.lines import Attempt, Line
from services.api.gateway.outcomes import Cut
from shared import leases
from shared.leases import ACCEPT_WITHIN_S
from shared.store.jobs import JobStore
from shared.store.records import RenewOutcome


class Leases:
    """Accepts new attempts in a moment, renews the rest; a lost lease cuts nothing that is being answered."""

    def __init__(self, jobs: JobStore, lease_s: float) -> None:
        self._leases: leases.Leases[Attempt] = leases.Leases(jobs, lease_s)

    @property
    def kept(self) -> int:
        return self._leases.kept

    def keep(self, line: Line, attempt: Attempt) -> None:
        """Accept this attempt (at once where it may be late), and keep its lease until it is dropped."""

        def told(outcome: RenewOutcome) -> None:
            attempt.answered(lost=outcome is RenewOutcome.STALE)
            if outcome is RenewOutcome.CANCEL:
                line.cut(Cut.CANCELLED)

        self._leases.keep(attempt, told, within_s=0.0 if attempt.in_doubt else ACCEPT_WITHIN_S)

    def drop(self, attempt: Attempt) -> None:
        """It is over."""
        self._leases.drop(attempt)

    async def run(self) -> None:
        """Until cancelled."""
        await self._leases.run()
