"""The container files as Compose resolves them: what is reachable, with which rights, from which settings."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from services.up import alive
from shared import config
from tests.kit.compose import BASE, DEFAULT_CONFIG, GPU, compose, environment_of, resolved
from tests.kit.stack import ROOT

OURS = ("simulator", "monitor", "router", "api")
ALL = ("redis", *OURS)
FILES = pytest.mark.parametrize("files", [(BASE,), (BASE, GPU)], ids=["base", "gpu"])
_HANDED_BACK_S = 2.0
"""What a router takes after ``router.drain_s`` to hand over the jobs that still run."""


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    """The services of a plain ``docker compose up``."""
    found: dict[str, Any] = resolved()["services"]
    return found


@FILES
def test_the_files_are_valid(files: tuple[Path, ...]) -> None:
    done = compose("config", "--quiet", files=files)

    assert (done.returncode, done.stderr) == (0, "")


def test_a_misspelt_condition_would_be_found(tmp_path: Path) -> None:
    broken = tmp_path / "docker-compose.yml"
    broken.write_text(BASE.read_text().replace("service_healthy", "service_heathy"))

    done = compose("config", "--quiet", files=(broken,))

    assert done.returncode != 0
    assert "depends_on.redis.condition value must be one of" in done.stderr


def test_only_the_api_is_published_and_only_on_loopback(services: dict[str, Any]) -> None:
    published = {name: service["ports"] for name, service in services.items() if "ports" in service}

    assert set(services) == set(ALL)
    assert list(published) == ["api"]
    assert [(port["host_ip"], port["published"], port["target"]) for port in published["api"]] == [
        ("127.0.0.1", "8000", 8000)
    ]


def test_the_api_starts_without_a_key_because_nobody_else_reaches_it(services: dict[str, Any]) -> None:
    open_ones = {name for name in OURS if "ORCH_API__INSECURE" in environment_of(services[name])}
    settings = config.load({**environment_of(services["api"]), "ORCH_CONFIG": str(DEFAULT_CONFIG)})

    assert open_ones == {"api"}
    assert settings.api.insecure
    assert {port["host_ip"] for port in services["api"]["ports"]} == {"127.0.0.1"}


def test_the_published_port_can_be_another_one() -> None:
    (port,) = resolved(API_PORT="9100")["services"]["api"]["ports"]

    assert (port["host_ip"], port["published"], port["target"]) == ("127.0.0.1", "9100", 8000)


@FILES
@pytest.mark.parametrize("name", ALL)
def test_a_container_has_no_more_rights_than_it_needs(files: tuple[Path, ...], name: str) -> None:
    service = resolved(*files)["services"][name]

    assert service["user"].partition(":")[0] not in ("", "0", "root")
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "cap_add" not in service
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "network_mode", "ipc", "devices"} & set(service)
    assert [
        volume for volume in service["volumes"] if volume["type"] == "bind" and not volume["read_only"]
    ] == []
    assert service.get("pid") == ("host" if name == "monitor" and GPU in files else None)


@pytest.mark.parametrize("name", ALL)
def test_a_container_is_watched_and_started_again(services: dict[str, Any], name: str) -> None:
    service = services[name]

    assert service["restart"] == "unless-stopped"
    assert service["healthcheck"]["test"][0] in ("CMD", "CMD-SHELL")
    assert service["logging"]["options"]["max-size"]


@pytest.mark.parametrize("name", OURS)
def test_a_service_is_asked_for_its_own_life(services: dict[str, Any], name: str) -> None:
    assert services[name]["healthcheck"]["test"] == ["CMD", "python", "-m", alive.__name__, name]
    assert services[name]["command"] == [f"services.{name}"]


def test_the_api_and_the_router_get_the_time_that_they_drain_for(services: dict[str, Any]) -> None:
    drain_s = config.Settings().router.drain_s
    for name in ("router", "api"):
        assert float(services[name]["stop_grace_period"].removesuffix("s")) > drain_s + _HANDED_BACK_S


def test_redis_keeps_what_it_accepted_and_outlives_those_who_use_it(services: dict[str, Any]) -> None:
    command = services["redis"]["command"]
    options = dict(zip(command[::2], command[1::2], strict=True))

    assert services["redis"]["entrypoint"] == ["redis-server"]
    assert (options["--appendonly"], options["--appendfsync"]) == ("yes", "everysec")
    assert options["--maxmemory-policy"] == "noeviction"
    assert [(volume["type"], volume["target"]) for volume in services["redis"]["volumes"]] == [
        ("volume", options["--dir"])
    ]
    for name in ("monitor", "router", "api"):
        assert services[name]["depends_on"]["redis"]["condition"] == "service_healthy"


def test_the_simulator_stops_after_those_whose_work_it_does(services: dict[str, Any]) -> None:
    assert all("simulator" in services[name]["depends_on"] for name in ("monitor", "router", "api"))


@pytest.mark.parametrize("name", OURS)
def test_every_variable_is_a_setting_that_exists(services: dict[str, Any], name: str) -> None:
    environ = environment_of(services[name])
    settings = config.load({**environ, "ORCH_CONFIG": str(DEFAULT_CONFIG)})

    assert settings.redis.effective_url == "redis://redis:6379/0"
    assert settings.simulator.host == "0.0.0.0"
    assert settings.api.host == ("0.0.0.0" if name == "api" else "127.0.0.1")
    assert environ["ORCH_CONFIG"] in [volume["target"] for volume in services[name]["volumes"]]


def test_nothing_configured_means_the_simulated_models_in_the_simulators_container(
    services: dict[str, Any],
) -> None:
    for name in OURS:
        settings = config.load({**environment_of(services[name]), "ORCH_CONFIG": str(DEFAULT_CONFIG)})
        (volume,) = services[name]["volumes"]

        assert Path(volume["source"]) == DEFAULT_CONFIG
        assert settings.backends.host == "simulator"
        assert settings.simulates


def test_a_configuration_file_is_mounted_and_its_ports_are_those_of_the_machine(tmp_path: Path) -> None:
    file = tmp_path / "my.yaml"
    file.write_text("models: [{name: mine, port: 8081}]\n")
    services = resolved(CONFIG=str(file))["services"]

    for name in OURS:
        settings = config.load({**environment_of(services[name]), "ORCH_CONFIG": str(file)})
        (volume,) = services[name]["volumes"]

        assert (Path(volume["source"]), volume["read_only"]) == (file, True)
        assert volume["bind"] == {"create_host_path": False}
        assert not settings.simulates
        assert services[name]["extra_hosts"] == [f"{settings.backends.host}=host-gateway"]


def test_a_file_named_without_its_directory_is_no_volume_of_that_name() -> None:
    (volume,) = resolved(CONFIG="my.yaml")["services"]["api"]["volumes"]

    assert (volume["type"], volume["source"]) == ("bind", str(ROOT / "my.yaml"))


def test_replicas_share_no_name_and_the_gpu_host_keeps_its_own() -> None:
    """A container that is named by nobody is named by its id: neither may come from the shell."""
    services = resolved(ORCH_HOST_NAME="workstation", ORCH_INSTANCE="one")["services"]

    names = {name: environment_of(services[name])["ORCH_HOST_NAME"] for name in OURS}
    assert names == {"simulator": "", "monitor": "workstation", "router": "", "api": ""}
    assert {environment_of(services[name])["ORCH_INSTANCE"] for name in OURS} == {""}
    assert all("container_name" not in services[name] and "hostname" not in services[name] for name in OURS)


def test_the_gpu_override_gives_the_monitor_every_card_and_nobody_else() -> None:
    services = resolved(BASE, GPU)["services"]
    (device,) = services["monitor"]["deploy"]["resources"]["reservations"]["devices"]

    assert device == {"driver": "nvidia", "count": -1, "capabilities": ["gpu", "utility"]}
    assert environment_of(services["monitor"])["NVIDIA_DRIVER_CAPABILITIES"] == "utility"
    assert [name for name in ALL if "deploy" in services[name]] == ["monitor"]


def test_the_image_is_built_without_tools_that_stay_and_runs_as_the_user_of_the_compose_file(
    services: dict[str, Any],
) -> None:
    text = (ROOT / "Dockerfile").read_text()
    bases = re.findall(r"^FROM (\S+)", text, re.MULTILINE)
    last = text.rpartition("\nFROM ")[2]

    assert len(bases) == 2
    assert len(set(bases)) == 1
    assert re.fullmatch(r"python:3\.\d+-slim-\w+", bases[0])
    assert "pip" not in last
    assert re.findall(r"^USER (\S+)", last, re.MULTILINE) == [services["api"]["user"]]
    assert re.search(r'^ENTRYPOINT \["python", "-m"\]$', last, re.MULTILINE)


def test_the_build_needs_nothing_that_only_buildkit_has() -> None:
    text = (ROOT / "Dockerfile").read_text()

    assert "# syntax=" not in text
    assert not re.search(r"--mount|--link|--chmod|<<", text)


def test_what_the_image_is_built_from_is_let_through_and_nothing_else() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    allowed = {line[1:] for line in lines if line.startswith("!")}
    copied = set()
    for line in re.findall(r"^COPY (?!--from)(.+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE):
        copied |= set(line.split()[:-1])

    assert "*" in lines
    assert allowed == copied
    assert all((ROOT / name).exists() for name in copied)
