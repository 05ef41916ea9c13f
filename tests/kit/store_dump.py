"""Everything that Redis holds, as comparable values, and what must be true of it after any history."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from redis.asyncio import Redis

from shared.keys import PERMANENT, STATIC, Keys
from shared.states import FINAL_STATES, JobEvent
from shared.store.records import StreamEntry
from tests.kit.journal import Journal

_LIVE = ("queued", "running")


@dataclass(frozen=True)
class Dump:
    """All keys below one namespace by kind; ``pending`` is ``<group> <entry>`` by stream."""

    hashes: dict[str, dict[str, str]] = field(default_factory=dict)
    zsets: dict[str, dict[str, float]] = field(default_factory=dict)
    sets: dict[str, frozenset[str]] = field(default_factory=dict)
    strings: dict[str, str] = field(default_factory=dict)
    streams: dict[str, tuple[StreamEntry, ...]] = field(default_factory=dict)
    pending: dict[str, tuple[str, ...]] = field(default_factory=dict)
    permanent: frozenset[str] = frozenset()
    """Keys without a TTL."""

    def without(self, *names: str) -> Dump:
        """The same without these keys, for parts that a call is expected to change."""
        kinds = ("hashes", "zsets", "sets", "strings", "streams", "pending")
        return replace(
            self,
            permanent=self.permanent - set(names),
            **{
                kind: {name: value for name, value in getattr(self, kind).items() if name not in names}
                for kind in kinds
            },
        )


_READ_ALL = """
local found = {}
for _, name in ipairs(redis.call('KEYS', ARGV[1])) do
  local kind, value, pending = redis.call('TYPE', name).ok, nil, {}
  if kind == 'hash' then value = redis.call('HGETALL', name)
  elseif kind == 'zset' then value = redis.call('ZRANGE', name, 0, -1, 'WITHSCORES')
  elseif kind == 'set' then value = redis.call('SMEMBERS', name)
  elseif kind == 'string' then value = redis.call('GET', name)
  else
    value = redis.call('XRANGE', name, '-', '+')
    for _, group in ipairs(redis.call('XINFO', 'GROUPS', name)) do
      for _, entry in ipairs(redis.call('XPENDING', name, group[2], '-', '+', 10000)) do
        pending[#pending + 1] = group[2] .. ' ' .. entry[1]
      end
    end
  end
  found[#found + 1] = {name, kind, redis.call('PTTL', name), value, pending}
end
return found
"""


async def dump(redis: Redis, keys: Keys) -> Dump:
    """Read every key of the namespace at one moment."""
    found = Dump()
    permanent: set[str] = set()
    reply: Any = await redis.eval(_READ_ALL, 0, f"{keys.namespace}:*")
    for name, kind, ttl, value, pending in reply:
        _put(found, kind, name, value)
        if kind == "stream":
            found.pending[name] = tuple(pending)
        if ttl == -1:
            permanent.add(name)
    return replace(found, permanent=frozenset(permanent))


def _put(found: Dump, kind: str, name: str, value: Any) -> None:
    match kind:
        case "hash":
            found.hashes[name] = _pairs(value)
        case "zset":
            found.zsets[name] = {member: float(score) for member, score in _pairs(value).items()}
        case "set":
            found.sets[name] = frozenset(value)
        case "string":
            found.strings[name] = value
        case _:
            found.streams[name] = tuple(StreamEntry(entry, _pairs(flat)) for entry, flat in value)


def _pairs(flat: list[str]) -> dict[str, str]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


def violations(state: Dump, keys: Keys) -> list[str]:
    """What must never be true and is; empty for a sound store."""
    jobs = {
        fields["job_id"]: fields
        for name, fields in state.hashes.items()
        if name.startswith(keys.job("")) and "state" in fields
    }
    return [
        *_queues(state, keys, jobs),
        *_lines(state, keys, jobs),
        *_slots(state, keys, jobs),
        *_bodies(state, keys, jobs),
        *_attached(state, keys, jobs),
        *_metered(state, keys, jobs),
        *_leaks(state, keys, jobs),
        *_history(state, keys, jobs),
    ]


_Jobs = Mapping[str, Mapping[str, str]]


def _queues(state: Dump, keys: Keys, jobs: _Jobs) -> Iterator[str]:
    by_state = {name: {job for job in jobs if jobs[job]["state"] == name} for name in _LIVE}
    live = state.zsets.get(keys.static("live"), {})
    if live != {job: float(jobs[job]["deadline_ms"]) for job in by_state["queued"] | by_state["running"]}:
        yield f"live is {live}"
    leases = state.zsets.get(keys.static("leases"), {})
    if set(leases) != by_state["running"]:
        yield f"leases of {sorted(leases)}, running are {sorted(by_state['running'])}"
    prefix = keys.ready("")
    ready = {name.removeprefix(prefix): jobs for name, jobs in state.zsets.items() if name.startswith(prefix)}
    waiting = Counter(list(state.zsets.get(keys.static("delayed"), {})))
    for target, members in ready.items():
        waiting.update(list(members))
        for job, score in members.items():
            if jobs.get(job, {}).get("target") != target or float(jobs[job]["place"]) > score:
                yield f"{job} waits at {score} for {target}, its hash says {jobs.get(job)}"
    if set(waiting) != by_state["queued"] or any(waiting[job] != 1 for job in by_state["queued"]):
        yield f"queued are {sorted(by_state['queued'])}, found waiting {dict(waiting)}"
    if state.sets.get(keys.static("targets"), frozenset()) != set(ready):
        yield f"targets say {state.sets.get(keys.static('targets'))}, queues are {sorted(ready)}"
    for target in state.hashes.get(keys.static("holds"), {}):
        if target not in ready:
            yield f"a hold is left for {target}, where nothing waits"


def _lines(state: Dump, keys: Keys, jobs: _Jobs) -> Iterator[str]:
    lines: dict[str, dict[str, float]] = {}
    for members in (found for name, found in state.zsets.items() if name.startswith(keys.ready(""))):
        for job in members:
            lines.setdefault(_line_of(keys, jobs[job]), {})[job] = float(jobs[job]["place"])
    found = {name: line for name, line in state.zsets.items() if name.startswith(keys.of("caller", ""))}
    if found != lines:
        yield f"lines are {found}, waiting are {lines}"
    for line in lines.values():
        order = sorted(line, key=lambda job: (line[job], job))
        ready = state.zsets[keys.ready(jobs[order[0]]["target"])]
        contending = [job for job in order if ready[job] < 5e12]
        if contending != order[:1]:
            yield f"of the line {order} contend {contending}"


def _line_of(keys: Keys, job: Mapping[str, str]) -> str:
    target = job["target"]
    return keys.of("caller", f"{len(target.encode())}:{target}:{job['caller']}")


def _slots(state: Dump, keys: Keys, jobs: _Jobs) -> Iterator[str]:
    taken: Counter[str] = Counter()
    for job in jobs.values():
        if job["state"] == "running":
            taken[keys.model(job["decision_model"])] += 1
            taken.update(keys.of("placement", gpu) for gpu in job["slot_gpus"].split(",") if gpu)
    for name, fields in state.hashes.items():
        if int(fields.get("in_flight", "0")) != taken[name]:
            yield f"{name} has {fields['in_flight']} in flight, running are {taken[name]}"
    for name in taken:
        if name not in state.hashes:
            yield f"{name} has no counter for {taken[name]} running"


def _bodies(state: Dump, keys: Keys, jobs: _Jobs) -> Iterator[str]:
    for job, fields in jobs.items():
        parts = [keys.job(job)] if fields.get("attached_to") else [keys.job(job), keys.request(job)]
        if fields["state"] == "succeeded":
            parts.append(keys.result(job))
        for name in parts:
            exists = name in state.hashes or name in state.strings
            if not exists or (name in state.permanent) != (fields["state"] in _LIVE):
                yield f"{name} of a {fields['state']} job: exists={exists}, TTL={name not in state.permanent}"
        if not 0 <= int(fields["tries"]) <= int(fields["attempt"]):
            yield f"{job} has {fields['tries']} tries in {fields['attempt']} attempts"


def _attached(state: Dump, keys: Keys, jobs: _Jobs) -> Iterator[str]:
    live: dict[str, set[str]] = {}
    for job, fields in jobs.items():
        holder = fields.get("attached_to")
        if holder and fields["state"] in _LIVE:
            live.setdefault(keys.of("held_by", holder), set()).add(job)
        if holder and keys.request(job) in state.strings:
            yield f"the body of {job} is stored: it belongs to its api"
    found = {name: held for name, held in state.sets.items() if name.startswith(keys.of("held_by", ""))}
    if found != live:
        yield f"attached are {found}, of those alive {live}"
    holders = state.sets.get(keys.static("attached"), frozenset())
    missing = set(live) - {keys.of("held_by", holder) for holder in holders}
    if missing:
        yield f"no sweep looks at {sorted(missing)}"


def _metered(state: Dump, keys: Keys, jobs: _Jobs) -> Iterator[str]:
    counted: dict[str, set[str]] = {}
    for job, fields in jobs.items():
        key = fields.get("metered")
        if key and fields["state"] in _LIVE:
            counted.setdefault(keys.of("key_live", key), set()).add(job)
        if key and fields["state"] == "running":
            counted.setdefault(keys.of("key_running", key), set()).add(job)
    kinds = (keys.of("key_live", "\0").split("\0"), keys.of("key_running", "\0").split("\0"))
    found = {
        name: members
        for name, members in state.sets.items()
        if any(name.startswith(before) and name.endswith(after) for before, after in kinds)
    }
    if found != counted:
        yield f"jobs of API keys are counted as {found}, those alive are {counted}"


def _leaks(state: Dump, keys: Keys, jobs: _Jobs) -> Iterator[str]:
    allowed = {keys.static(name) for name in STATIC}
    for job, fields in jobs.items():
        if fields["state"] in _LIVE:
            allowed |= {keys.job(job), keys.request(job)}
            allowed |= {keys.ready(fields["target"]), _line_of(keys, fields)}
            allowed.add(keys.of("held_by", fields.get("attached_to", "")))
            allowed |= {keys.of(name, fields.get("metered", "")) for name in ("key_live", "key_running")}
    patterns = [
        # The name of a model may hold a colon, that of a GPU may not.
        re.escape(keys.of(name, "\0")).replace("\0", ".*" if name == "model" else "[^:]*")
        for name in PERMANENT - set(STATIC)
    ]
    for name in state.permanent - allowed:
        if not any(re.fullmatch(pattern, name) for pattern in patterns):
            yield f"{name} lives for ever"


def _history(state: Dump, keys: Keys, jobs: _Jobs) -> Iterator[str]:
    journal = Journal(state.streams.get(keys.events, ()))
    yield from journal.faults()
    for job, fields in jobs.items():
        entries = journal.jobs[job]
        kinds = [entry.fields["type"] for entry in entries]
        if not entries or entries[-1].fields["state"] != fields["state"]:
            yield f"{job} is {fields['state']}, its events are {kinds}"
        if (fields["state"] in FINAL_STATES) != (job in journal.ended()):
            yield f"{job} is {fields['state']}, its events end with {kinds[-1:]}"
        if kinds.count(JobEvent.STARTED) != int(fields["attempt"]):
            yield f"{job} has attempt {fields['attempt']}, its events are {kinds}"
        if JobEvent.CANCEL_REQUESTED in kinds:
            after = kinds[kinds.index(JobEvent.CANCEL_REQUESTED) + 1 :]
            if {JobEvent.RETRIED, JobEvent.REQUEUED, JobEvent.DEAD, JobEvent.STARTED} & set(after):
                yield f"{job} went on after its cancel: {kinds}"
