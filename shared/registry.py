"""What is known of a model before it is measured: one registration, as the file and Redis hold it."""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    model_validator,
)

from shared.states import BackendType
from shared.units import SECONDS, TOKENS, Unit

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,127}$")]
AgentType = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_HOST_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?\.?")


def _server_address(url: str) -> str:
    """Refuse what no server can be reached at, and passwords, which would be shown with every decision."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError(f"is no address of a server ({error})") from None
    if parts.username is not None or parts.password is not None:
        raise ValueError("must not hold a user or password: name a variable in api_key_env")
    if not host or port == 0 or not (_HOST_NAME.fullmatch(host) or _is_ip(host)):
        raise ValueError("must name a host, and a port from 1 to 65535 if any, such as http://10.0.0.2:8000")
    if parts.query or parts.fragment:
        raise ValueError("must end with its path: leave out '?' and '#' and what follows")
    return url


def _variable(name: str) -> str:
    """Refuse what can be no variable's name without repeating it: it may be the key itself."""
    if not _VARIABLE.fullmatch(name):
        raise ValueError(
            "must be the name of an environment variable (letters, digits and _), not the key itself"
        )
    return name


def _number(value: Any) -> Any:
    """JSON knows one kind of number: 8080.0 is 8080."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


_WHOLE = BeforeValidator(_number)


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


class Registration(BaseModel):
    """A model as somebody registered it; kind of server, context, slots and upstream name are discovered if
    left out."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: Name = Field(
        description="What it is called by callers (unless `serves` says otherwise) and in decisions; unique."
    )
    backend: BackendType | None = Field(
        None,
        description="Which kind of server it is; left out: what that says, `llama_cpp` till probed.",
    )
    vram_gb: Annotated[float, Field(ge=0, le=4096), Unit("GB")] | None = Field(
        None, description="Memory that it takes when loaded, for advice; its footprint is measured besides."
    )
    port: Annotated[int, Field(ge=1, le=65535, strict=True), _WHOLE, Unit("port")] | None = Field(
        None, description="Port of its server on `backends.host`; this or `url` must be given."
    )
    url: (
        Annotated[
            str, StringConstraints(pattern=r"^https?://[^\s/]+[^\s]*$"), AfterValidator(_server_address)
        ]
        | None
    ) = Field(
        None,
        description="Where its server is, without `/v1`; counts instead of `port`; no password in it.",
    )
    host: Annotated[str, StringConstraints(min_length=1, max_length=253)] | None = Field(
        None, description="The GPU host whose monitor probes it; left out: any monitor's own host."
    )
    serves: tuple[Name, ...] = Field(
        (),
        description="Public names that it answers to instead of its own; those that share one are replicas.",
    )
    upstream_name: str | None = Field(
        None,
        description="Its name at its server; left out: what that says; `name` till probed or in router mode.",
    )
    api_key_env: Annotated[str, AfterValidator(_variable)] | None = Field(
        None, description="The environment variable that holds the key which its server asks for."
    )
    context_tokens: Annotated[int, Field(ge=1), TOKENS] | None = Field(
        None, description="Context of one request; left out: what the server says, else 2048."
    )
    slots: Annotated[int, Field(ge=1, le=1024), Unit("requests")] | None = Field(
        None,
        description="Requests that it computes at once; left out: what the server says or implies, else 1.",
    )
    agent_types: tuple[AgentType, ...] = Field(
        (),
        description="What it is for; another agent type gets it only by its name. None: for any.",
    )
    gpu: (
        Annotated[str, StringConstraints(min_length=1, max_length=64)]
        | Annotated[int, Field(ge=0, strict=True), _WHOLE, Unit("index or UUID")]
        | None
    ) = Field(
        None,
        description="Its card, by index or UUID; left out: the only one, or where its processes are seen.",
    )
    pin: bool = Field(False, description="Never advise to unload it to make room.")
    preload: bool = Field(False, description="Kept with the registration; nothing loads models yet.")
    ttl_s: Annotated[float, Field(gt=0), SECONDS] | None = Field(
        None,
        description="Idle for longer than this, it is advised to be unloaded; left out: not for idleness.",
    )
    command: str | None = Field(None, description="Kept with the registration; nothing starts servers yet.")
    tokens_per_second: Annotated[float, Field(gt=0), Unit("tokens/s")] | None = Field(
        None, description="Output of one request alone, for estimates until it is measured."
    )
    simulated: bool = Field(False, description="Let the simulator serve it at its port.")
    source: Literal["file", "http"] = Field(
        "http", description="Who registered it: set by the orchestrator, whatever is written here."
    )

    @model_validator(mode="after")
    def _reachable(self) -> Self:
        if self.port is None and self.url is None:
            raise ValueError(f"model {self.name!r} has neither 'port' nor 'url': give one of them")
        return self

    @model_validator(mode="after")
    def _no_target_of_ours(self) -> Self:
        taken = [name for name in (self.name, *self.serves) if name == "auto" or name.startswith("auto:")]
        if taken:
            raise ValueError(f"{taken[0]!r} means any model to callers: give the model another name")
        return self

    @property
    def served_names(self) -> tuple[str, ...]:
        """The public names that this registration answers to (its own unless ``serves`` says others)."""
        return self.serves or (self.name,)

    @property
    def listening_port(self) -> int | None:
        """The port that its server listens on, also where it is given by ``url``."""
        if self.url is None:
            return self.port
        parts = urlsplit(self.url)
        return parts.port or (443 if parts.scheme == "https" else 80)

    def base_url(self, backends_host: str) -> str:
        """Where its server listens, without a trailing slash; ``backends_host`` completes a bare port."""
        return (self.url or f"http://{backends_host}:{self.port}").rstrip("/")


SPECIFICATION_MODELS: tuple[Registration, ...] = (
    Registration(
        name="tiny-llama-1b", backend=BackendType.LLAMA_CPP, vram_gb=2.3, port=8080, agent_types=("Chat",),
        slots=4, context_tokens=4096, tokens_per_second=200, source="file", simulated=True,
    ),
    Registration(
        name="bi-medix2", backend=BackendType.LLAMA_CPP, vram_gb=6.5, port=8081,
        agent_types=("Chat", "MedicalQA"), slots=4, context_tokens=4096, source="file", simulated=True,
    ),
    Registration(
        name="openins-llama3-8b", backend=BackendType.LLAMA_CPP, vram_gb=7.8, port=8084,
        agent_types=("Chat", "Insurance"), slots=4, context_tokens=4096, source="file", simulated=True,
    ),
)  # fmt: skip
"""The specification's three default models, served by the simulator where no models are configured."""
