"""What all requests of an api share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from services.api.gateway.fastpath import FastPath
from services.api.gateway.leases import Leases
from services.api.gateway.lines import Switchboard
from services.api.gateway.moments import Moments
from services.api.gateway.turns import Turns
from services.api.gateway.unheard import Unheard
from shared.backends.http import HttpClient
from shared.config import Settings
from shared.store.jobs import JobStore


@dataclass(frozen=True, slots=True)
class Parts:
    """``holder`` is what an api's jobs are attached to, ``public_name`` what clients call a model."""

    settings: Settings
    jobs: JobStore
    http: HttpClient
    board: Switchboard
    leases: Leases
    unheard: Unheard
    fast: FastPath
    moments: Moments
    turns: Turns
    holder: str
    public_name: Callable[[str], str]
