"""A backend that does not know the model's name: the job waits, unless somebody said that name."""

from __future__ import annotations

import pytest

from shared.backends.errors import from_status
from shared.config import RouterSettings, Settings
from shared.outcomes import failure_of
from shared.registry import Registration
from shared.snapshots import snapshot_of
from shared.store.records import FailOutcome
from tests.kit.store_fixture import MODEL, Store

UNKNOWN = failure_of(from_status(404, "The model `x` does not exist."), 0, RouterSettings())


@pytest.mark.parametrize(
    ("said", "outcome", "rests"),
    [(None, FailOutcome.QUEUED, True), ("x", FailOutcome.FAILED, False)],
)
async def test_a_name_that_nobody_said_is_waited_for(
    store: Store, said: str | None, outcome: FailOutcome, *, rests: bool
) -> None:
    await store.fleet.register([Registration(name=MODEL, port=9001, upstream_name=said)])
    attempt = await store.start()

    assert await store.jobs.fail("j1", attempt, UNKNOWN) is outcome
    assert await store.jobs.fail("j1", attempt, UNKNOWN) is outcome, "said once more"

    job = await store.job()
    assert (job.state, job.fields["tries"]) == (outcome.value.lower(), "0")
    model = snapshot_of(await store.fleet.view(heads=0), Settings()).models[MODEL]
    assert (model.name_unknown_for_ms > 0) == rests


async def test_another_server_under_that_name_is_asked_at_once(store: Store) -> None:
    await store.fleet.register([Registration(name=MODEL, port=9001)])
    await store.jobs.fail("j1", await store.start(), UNKNOWN)
    await store.fleet.register([Registration(name=MODEL, port=9002)])
    model = snapshot_of(await store.fleet.view(heads=0), Settings()).models[MODEL]
    assert model.name_unknown_for_ms == 0
