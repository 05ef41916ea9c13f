"""``config`` and ``up``: what is wrong in the settings is named, what is secret in them is not."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from shared import config
from tests.kit.cli import Commands, environment, process, written
from tests.kit.stack import ROOT

_WRONG = """
redis: {url: "redis://:hunter2@10.0.0.2:6379/0", namspace: x}
api: {prot: 9, max_wait_s: soon}
models:
  - {name: a, port: 8081, vram: 3}
"""
_SECRET = """
redis: {url: "redis://me:hun/t@er2@10.0.0.2:6379/0"}
models:
  - {name: a, port: 8081, command: "serve --api-key hunter2 -m x", api_key_env: UPSTREAM_KEY}
"""


def test_every_wrong_key_is_named_with_the_nearest_one(commands: Commands, tmp_path: Path) -> None:
    path = written(tmp_path / "wrong.yaml", _WRONG)
    plain = commands.piped("config", "check", path, environ=environment())
    assert (plain.code, plain.out) == (2, "")
    lines = plain.err.splitlines()
    assert len(lines) == 4
    assert all(line.startswith(f"gpu-orchestrator: {path}: ") for line in lines)
    for said in (
        "unknown key 'redis.namspace': did you mean 'namespace'?",
        "unknown key 'api.prot': did you mean 'port'?",
        "unknown key 'models.0.vram': did you mean 'vram_gb'?",
        "api.max_wait_s = 'soon'",
    ):
        assert said in plain.err
    document = commands.piped("config", "check", path, "--json", environ=environment())
    assert (document.code, document.err) == (2, "")
    assert document.document["valid"] is False
    assert len(document.document["problems"]) == 4


def test_a_right_file_is_said_to_be_right(commands: Commands, tmp_path: Path) -> None:
    path = written(tmp_path / "right.yaml", "models: [{name: a, port: 8081}]")
    environ = environment(ORCH_CONFIG=path, ORCH_API_KEY="sk-x", ORCH_API_URL="http://127.0.0.1:9")
    plain = commands.piped("config", "check", environ=environ)
    assert (plain.code, plain.out, plain.err) == (0, f"{path}: right; models: a\n", "")
    assert commands.piped("config", "check", "--json", environ=environ).document["valid"] is True


@pytest.mark.parametrize("form", ["--json", ""])
def test_the_settings_in_effect_are_shown_without_their_secrets(
    commands: Commands, tmp_path: Path, form: str
) -> None:
    path = written(tmp_path / "secret.yaml", _SECRET)
    ended = commands.piped(*f"config show {path} {form}".split(), environ=environment(ORCH_API__PORT="9001"))
    assert (ended.code, ended.err) == (0, "")
    for secret in ("hunter2", "er2", "hun/t"):
        assert secret not in ended.out
    shown = yaml.safe_load(ended.out)
    assert shown["redis"]["url"] == "redis://***@10.0.0.2:6379/0"
    assert shown["api"]["port"] == 9001
    assert shown["models"][0]["command"] == "serve --api-key *** -m x"
    assert shown["models"][0]["api_key_env"] == "UPSTREAM_KEY"
    assert set(shown) == set(config.Settings.model_fields)
    assert config.parse(shown, "shown").api.port == 9001


@pytest.mark.parametrize(
    "text",
    [
        "redis: {url: 'http://me:hunter2@host'}",
        "redis: 'redis://:hunter2@h'",
        "redis: {url: 'redis://:hunter2@h'\n x: [",
    ],
)
def test_a_secret_in_a_wrong_setting_is_not_repeated(commands: Commands, tmp_path: Path, text: str) -> None:
    path = written(tmp_path / "wrong.yaml", text)
    for command in (("config", "check"), ("config", "show")):
        for run in (commands.piped, commands.on_terminal):
            ended = run(*command, path, environ=environment())
            assert ended.code == 2
            assert "hunter2" not in ended.out + ended.err


def test_up_is_not_disturbed_by_what_only_the_command_line_reads(tmp_path: Path) -> None:
    path = written(tmp_path / "wrong.yaml", "router: {lease_s: soon}")
    environ = environment(ORCH_API_KEY="sk-x", ORCH_API_URL="http://127.0.0.1:9")
    ended = process("up", "--config", path, environ=environ)
    assert ended.code == 2
    (line,) = ended.err.splitlines()
    assert "router.lease_s = 'soon'" in line
    assert "api_key" not in line


def test_the_reference_is_printed_as_a_page_an_extract_and_a_schema(commands: Commands) -> None:
    page = commands.piped("config", "reference", environ=environment())
    assert (page.code, page.err) == (0, "")
    assert page.out == (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    extract = commands.piped("config", "reference", "--short", environ=environment())
    assert (extract.code, extract.err) == (0, "")
    assert extract.out in (ROOT / "README.md").read_text(encoding="utf-8")
    schema = commands.piped("config", "reference", "--json", environ=environment())
    assert (schema.code, schema.err) == (0, "")
    assert set(schema.document["properties"]) == set(config.Settings.model_fields)
