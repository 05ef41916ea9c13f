"""What the routers tell an api of the jobs whose clients wait on its connections."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from loguru import logger
from redis.asyncio import Redis

from shared.keys import Keys
from shared.states import BackendType, JobEvent, JobState
from shared.store.records import StreamEntry
from shared.store.streams import Follower

GRANTED = "job.granted"


@dataclass(frozen=True, slots=True)
class Grant:
    """An attempt that was started for us: call this backend now, under a first lease of a few seconds.

    ``model`` is the registration's name, ``gpu`` is ``host/index`` (several joined by commas, empty if not
    known), ``estimated_duration_ms`` None if not known. Times in ms of Redis' clock.
    """

    job_id: str
    attempt: int
    tries: int
    model: str
    backend: BackendType
    url: str
    upstream_name: str
    api_key_env: str | None
    gpu: str
    code: str
    reason: str
    estimated_duration_ms: float | None
    granted_ms: int


@dataclass(frozen=True, slots=True)
class Ended:
    """A job ended otherwise than by us: cancelled, expired, rejected, swept."""

    job_id: str
    state: JobState
    error_type: str
    detail: str


@dataclass(frozen=True, slots=True)
class CancelAsked:
    """Somebody asked to cancel a job that we run."""

    job_id: str
    attempt: int
    detail: str


Told = Grant | Ended | CancelAsked


class Grants:
    """The reading end of ``orch:grants:<holder>``: every entry once, also those before the first read."""

    def __init__(self, reader: Redis, keys: Keys, holder: str) -> None:
        self._follower = Follower(reader, {keys.of("grants", holder): "0-0"})

    async def read(self) -> list[Told]:
        """What came since, waiting up to ``BLOCK_S`` seconds; raises ``StoreUnavailable``."""
        return [told for _, entry in await self._follower.read() if (told := _readable(entry)) is not None]


def _readable(entry: StreamEntry) -> Told | None:
    try:
        return _told(entry)
    except (KeyError, ValueError) as error:
        logger.warning("a grants entry is not readable, skipped: {} ({!r})", entry.id, error)
        return None


def _told(entry: StreamEntry) -> Told:
    fields = entry.fields
    job_id, kind = fields["job_id"], fields["type"]
    if kind == JobEvent.CANCEL_REQUESTED:
        return CancelAsked(job_id, int(fields["attempt"]), fields["error_detail"])
    if kind != GRANTED:
        return Ended(job_id, JobState(fields["state"]), fields["error_type"], fields["error_detail"])
    return grant_of(fields)


def grant_of(fields: Mapping[str, str]) -> Grant:
    """The grant that an entry says; raises ``KeyError`` or ``ValueError`` where it says none."""
    estimate = fields.get("estimated_duration_ms")
    return Grant(
        job_id=fields["job_id"],
        attempt=int(fields["attempt"]),
        tries=int(fields["tries"]),
        model=fields["model"],
        backend=BackendType(fields["backend"]),
        url=fields["url"],
        upstream_name=fields["upstream_name"],
        api_key_env=fields.get("api_key_env"),
        gpu=fields["gpu"],
        code=fields["code"],
        reason=fields["reason"],
        estimated_duration_ms=float(estimate) if estimate else None,
        granted_ms=int(fields["ts_ms"]),
    )
