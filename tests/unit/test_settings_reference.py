"""The documentation of the settings: it is what the code says, leaves nothing out, and tells the truth."""

from __future__ import annotations

from typing import Any

import pytest

from services.cli import reference
from shared import config
from shared.units import UNIT
from tests.kit.stack import ROOT

COMMAND = "gpu-orchestrator config reference"


def described() -> list[tuple[str, dict[str, Any]]]:
    """Every key with its own JSON schema, under the name of its model."""
    models = reference.json_schema()["$defs"]
    return [
        (f"{model}.{key}", schema)
        for model, found in models.items()
        for key, schema in found.get("properties", {}).items()
    ]


def lines(text: str, key: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith(f"| `{key}` |")]


def test_the_page_is_what_the_code_generates() -> None:
    written = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert written == reference.page(), f"run: {COMMAND} > docs/configuration.md"


def test_the_readme_links_the_page_and_shows_the_settings_that_people_change_most() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "(docs/configuration.md)" in readme
    assert f"\n\n{reference.extract()}\n" in readme, f"put this into README.md: {COMMAND} --short"


@pytest.mark.parametrize(("name", "schema"), described())
def test_every_key_says_in_one_line_what_it_means(name: str, schema: dict[str, Any]) -> None:
    said = schema.get("description", "")
    assert said, f"{name} has no description: give its Field one"
    assert said == " ".join(said.split())
    assert said.endswith(".")


def test_every_section_says_what_it_is_for() -> None:
    models = reference.json_schema()["$defs"]
    assert [name for name, model in models.items() if not model.get("description")] == []


@pytest.mark.parametrize(("name", "schema"), described())
def test_every_number_has_a_unit(name: str, schema: dict[str, Any]) -> None:
    kinds = [schema, *schema.get("anyOf", ())]
    if any(kind.get("type") in ("number", "integer") for kind in kinds):
        assert any(kind.get(UNIT) for kind in kinds), f"{name} is a number: annotate it with a Unit"


def test_every_setting_stands_in_the_page_with_its_section() -> None:
    known = {(one.section, one.key) for one in reference.settings()}
    everything = config.Settings().model_dump()
    in_sections = {(name, key) for name, keys in everything.items() if isinstance(keys, dict) for key in keys}
    in_lists = {("models", key) for key in config.Settings().registrations[0].model_dump()}
    in_lists |= {("gpus", key) for key in config.GpuOverride(id=0).model_dump()}
    assert known == in_sections | in_lists


@pytest.mark.parametrize(
    "one",
    [one for one in reference.settings() if one.variable and one.default != "-"],
    ids=lambda one: one.variable,
)
def test_the_default_of_each_variable_changes_nothing(one: reference.Setting) -> None:
    assert config.load({one.variable: one.default.strip("`")}) == config.load({})


@pytest.mark.parametrize(
    ("section", "key", "cells"),
    [
        ("gpu", "interval_s", ("1", "number from 0.1 to 60", "s")),
        ("api", "max_wait_s", ("300", "number above 0 to 86400", "s")),
        ("queue", "bound", ("10000", "whole number from 1", "jobs")),
        ("gpu", "source", ("`auto`", "`auto`, `nvml`, `simulated`, `none`", "")),
        ("api", "insecure", ("`false`", "`true`, `false`", "")),
        ("redis", "url", ("-", "text like `^(rediss?|unix)://`", "")),
        ("models", "vram_gb", ("-", "number from 0 to 4096", "GB")),
        ("models", "name", ("required", "text like `^[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,127}$`", "")),
        ("models", "backend", ("-", "`llama_cpp`, `vllm`", "")),
        ("gpus", "id", ("required", "text or whole number", "index or UUID")),
    ],
)
def test_default_range_and_unit_are_told_apart(section: str, key: str, cells: tuple[str, ...]) -> None:
    (found,) = [one for one in reference.settings() if (one.section, one.key) == (section, key)]
    assert (found.default, found.allowed, found.unit) == cells


def test_a_bar_in_a_pattern_does_not_break_its_row() -> None:
    (row,) = lines(reference.extract(), "redis.url")
    assert row.replace(r"\|", "").count("|") == 6


def test_every_variable_that_is_no_setting_is_explained() -> None:
    assert set(reference.NO_SETTINGS) == config.RESERVED_ENV
