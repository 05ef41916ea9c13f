"""The settings of the api: where it listens, what it takes, and whom it answers."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from shared.addresses import HostName, Network, Origin, is_loopback

Seconds = Annotated[float, Field(gt=0, le=86400)]
Port = Annotated[int, Field(ge=1, le=65535)]


class Section(BaseModel):
    """A part of the settings file."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ApiSettings(Section):
    host: str = "127.0.0.1"
    """Address to listen on; elsewhere than on loopback a key must exist (``gpu-orchestrator keys``)."""
    port: Port = 8000
    max_body_bytes: Annotated[int, Field(ge=1024, le=512 * 2**20)] = 8 * 2**20
    max_wait_s: Seconds = 300.0
    insecure: bool = False
    """Serve without keys elsewhere than on loopback: whoever reaches the port may then do everything."""
    require_key: bool = False
    """Ask for a key on loopback too, also while none exists: for an api behind a proxy."""
    allowed_hosts: tuple[HostName, ...] = ()
    """Names in ``Host`` that are answered besides localhost, ``host`` and IP addresses; without a port."""
    cors_origins: tuple[Origin, ...] = ()
    """Origins whose pages may call the api from a browser; none by default."""
    trusted_proxies: tuple[Network, ...] = ()
    """Addresses or networks of proxies whose ``X-Forwarded-For`` is believed, for the log."""

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach it."""
        return is_loopback(self.host)

    @property
    def demands_key(self) -> bool:
        """Whether nothing is answered without a key even while no key exists."""
        return self.require_key or not (self.is_local or self.insecure)
