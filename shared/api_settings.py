"""The settings of the api: where it listens, what it takes, and whom it answers."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from shared.addresses import HostName, Network, Origin, is_loopback
from shared.units import Port, Seconds, Unit


class Section(BaseModel):
    """A part of the settings file; its descriptions make docs/configuration.md (docs/configuration.md)."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ApiSettings(Section):
    """Where the api listens, what it takes, and whom it answers."""

    host: str = Field(
        "127.0.0.1",
        description="Address to listen on; elsewhere than on loopback a key must exist.",
    )
    port: Port = Field(8000, description="Port to listen on.")
    max_body_bytes: Annotated[int, Field(ge=1024, le=512 * 2**20), Unit("bytes")] = Field(
        8 * 2**20, description="Largest body of a request; a larger one is refused with 413."
    )
    max_wait_s: Seconds = Field(300.0, description="Longest `wait` that a call may ask for.")
    fast_path: bool = Field(
        True,
        description="Decide in the api on what comes in while nobody waits; else the routers decide on it.",
    )
    insecure: bool = Field(
        False,
        description="Serve without keys elsewhere than on loopback: whoever reaches it may do everything.",
    )
    require_key: bool = Field(
        False, description="Ask for a key on loopback too, also while none exists: for an api behind a proxy."
    )
    allowed_hosts: tuple[HostName, ...] = Field(
        (),
        description="More names, such as gpubox.lan, that are answered when they stand in `Host`.",
    )
    cors_origins: tuple[Origin, ...] = Field(
        (), description="Origins, such as https://chat.example.org, whose pages may call the api."
    )
    trusted_proxies: tuple[Network, ...] = Field(
        (), description="Proxies, such as 10.0.0.0/8, whose `X-Forwarded-For` is believed, for the log."
    )

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach it."""
        return is_loopback(self.host)

    @property
    def demands_key(self) -> bool:
        """Whether nothing is answered without a key even while no key exists."""
        return self.require_key or not (self.is_local or self.insecure)
