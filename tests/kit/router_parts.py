"""Parts of a router on the test's own connections."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from services.router.dispatcher import Dispatcher
from services.router.handover import Handover
from services.router.intake import IntakeLoop
from shared.backends.http import HttpClient
from shared.config import Settings
from shared.placement.picture import Pictures
from shared.store.records import Head
from shared.store.streams import Intake
from tests.kit.store_fixture import Store

ROUTER = "router-1"


@dataclass(frozen=True)
class RouterParts:
    """What runs jobs in a router named ``ROUTER``."""

    dispatcher: Dispatcher
    handover: Handover


def router_parts(store: Store, settings: Settings | None = None, router: str = ROUTER) -> RouterParts:
    """A dispatcher whose leases nobody keeps until its ``run`` runs, and what hands jobs to it."""
    used = settings or Settings()
    dispatcher = Dispatcher(
        store.jobs, HttpClient(), used, router=router, on_end=lambda _: None, on_delay=lambda _: None
    )
    pictures = Pictures(store.fleet, used)
    return RouterParts(dispatcher, Handover(store.jobs, dispatcher, pictures, used, router))


def intake_loop(store: Store, intake: Intake, offer: Callable[[Sequence[Head]], None]) -> IntakeLoop:
    """The intake of a router."""
    return IntakeLoop(intake, store.jobs, store.fleet, Settings(), offer, router_parts(store).handover)
