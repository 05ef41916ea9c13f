"""The documentation of the settings, made from their own models: docs/configuration.md and its extract."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from services.cli.command import PROGRAM
from shared.config import ENV_PREFIX, Settings
from shared.reload import takes_effect
from shared.units import UNIT

Schema = Mapping[str, Any]

FREQUENT = (
    "redis.url", "api.host", "api.port", "gpu.source", "gpu.reserve_gb", "backends.host",
    "router.idle_timeout_s", "queue.bound", "jobs.max_tokens", "jobs.deadline_s", "jobs.retention_s",
    "log.level",
)  # fmt: skip
"""The settings that people change most; the README shows these."""

NO_SETTINGS = {
    "ORCH_CONFIG": "The settings file; `make up` takes it as `CONFIG`.",
    "ORCH_HOST_NAME": "Name of this GPU host in samples and levels; else the machine's.",
    "ORCH_INSTANCE": "Name of one process among several of its kind; else one is made up for it.",
    "ORCH_API_URL": "Which api the command line calls; else that of the settings.",
    "ORCH_API_KEY": "The key that the command line shows it.",
}
"""Variables with the prefix of settings that are none."""

_INTRODUCTION = f"""\
<!-- Made by `{PROGRAM} config reference > docs/configuration.md` from the settings' models. -->

# Configuration

Everything has a default; models are what most people add. The settings come from the YAML file that
`ORCH_CONFIG` names (`CONFIG=my.yaml make up`) and from environment variables, which count more. A section is
a mapping (`api: {{port: 9000}}`), and `api.port` is `ORCH_API__PORT` in the environment; lists are written as
JSON there. A wrong key or value is an error that names it and what is allowed. `{PROGRAM} config check`
looks for such errors, `config show` prints what is in effect, and `config reference --json` is a JSON schema
of the file, for editors.

The file is followed while the services run: a change counts one to two seconds later (under `make up` one to
three) where the last column says `at once`; what needs a restart (under `make up` of the whole) is named in
the log. A file that is wrong, empty (also: comments only), no regular file or gone changes nothing, and the
log says so. A file that no longer names any model takes none away.

A model of the file takes the place of one that was registered over HTTP under its name, with a warning: it
is the file's from then on, and goes when the file no longer names it. Apis of one namespace need the same
models in their files: each one that writes its own takes out those of other files.

Seconds (s) may have decimals. GB are of 2^30 bytes. `-` as default means that nothing is set.
"""


@dataclass(frozen=True, slots=True)
class Setting:
    """One key, as its tables show it; ``variable`` is empty for a key inside a list."""

    section: str
    key: str
    variable: str
    default: str
    allowed: str
    unit: str
    meaning: str
    effect: str


def json_schema() -> dict[str, Any]:
    """The JSON schema of the settings file; the unit of a number stands under ``x-unit``."""
    return Settings.model_json_schema()


def settings() -> Iterator[Setting]:
    """Every key of every section, and of the entries of ``models`` and ``gpus``."""
    whole = json_schema()
    for section, field in whole["properties"].items():
        for key, schema in _model(field, whole)["properties"].items():
            yield _setting(section, key, schema, whole)


def page() -> str:
    """The text of docs/configuration.md."""
    whole = json_schema()
    known = list(settings())
    parts = [_INTRODUCTION]
    for section, field in whole["properties"].items():
        about = " ".join(_model(field, whole).get("description", "").split())
        own = [one for one in known if one.section == section]
        parts.append(f"## {section}\n\n{about}{_as_list(section, field)}\n\n{_section_table(own)}")
    other = ((f"`{name}`", meaning) for name, meaning in NO_SETTINGS.items())
    parts.append(f"## Other variables\n\n{_table(('variable', 'meaning'), other)}")
    return "\n".join(parts)


def extract() -> str:
    """The table of the README."""
    known = {f"{one.section}.{one.key}": one for one in settings()}
    titles = ("setting", "default", "allowed", "unit", "meaning")
    return _table(
        titles,
        (
            (f"`{name}`", one.default, one.allowed, one.unit, one.meaning)
            for name, one in ((name, known[name]) for name in FREQUENT)
        ),
    )


def _model(field: Schema, whole: Schema) -> Schema:
    """The model of a section, or of the entries of a list."""
    return _resolved(field.get("items", field), whole)


def _resolved(schema: Schema, whole: Schema) -> Schema:
    reference = schema.get("$ref")
    if reference is None:
        return schema
    found: Schema = whole["$defs"][reference.rpartition("/")[2]]
    return found


def _setting(section: str, key: str, schema: Schema, whole: Schema) -> Setting:
    listed = "items" in whole["properties"][section]
    kinds = [_resolved(kind, whole) for kind in schema.get("anyOf", (schema,)) if kind.get("type") != "null"]
    return Setting(
        section=section,
        key=key,
        variable="" if listed else f"{ENV_PREFIX}{section}__{key}".upper(),
        default=_code(schema["default"]) if "default" in schema else "required",
        allowed=" or ".join(_allowed(kind) for kind in kinds),
        unit=schema.get(UNIT) or next((kind[UNIT] for kind in kinds if UNIT in kind), ""),
        meaning=schema.get("description", ""),
        effect=takes_effect(f"{section}.{key}"),
    )


def _allowed(kind: Schema) -> str:
    if "enum" in kind:
        return ", ".join(_code(value) for value in kind["enum"])
    match kind["type"]:
        case "array":
            return f"list of: {_allowed(kind['items'])}"
        case "boolean":
            return "`true`, `false`"
        case "string":
            return _text(kind)
        case _:
            whole = "whole number" if kind["type"] == "integer" else "number"
            return f"{whole} {_range(kind)}".rstrip()


def _text(kind: Schema) -> str:
    if "pattern" in kind:
        return f"text like {_code(kind['pattern'])}"
    if "maxLength" in kind:
        return f"text of {kind['minLength']} to {kind['maxLength']} characters"
    return "text"


def _range(kind: Schema) -> str:
    low: float | None = kind.get("minimum")
    above: float | None = kind.get("exclusiveMinimum")
    high: float | None = kind.get("maximum")
    parts = (
        "" if above is None else f"above {_number(above)}",
        "" if low is None else f"from {_number(low)}",
        "" if high is None else f"to {_number(high)}",
    )
    return " ".join(part for part in parts if part)


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else str(value)


def _code(value: Any) -> str:
    match value:
        case None | [] | ():
            return "-"
        case bool():
            return f"`{str(value).lower()}`"
        case int() | float():
            return _number(value)
        case _:
            return f"`{value}`"


def _as_list(section: str, field: Schema) -> str:
    if "items" not in field:
        return ""
    variable = f"{ENV_PREFIX}{section}".upper()
    return f" A list of mappings with these keys; in the environment as a whole, as JSON in `{variable}`."


def _section_table(own: Iterable[Setting]) -> str:
    rows = [
        (f"`{one.key}`", f"`{one.variable}`", one.default, one.allowed, one.unit, one.meaning, one.effect)
        for one in own
    ]
    titles: tuple[str, ...] = (
        "key", "environment", "default", "allowed", "unit", "meaning", "takes effect",
    )  # fmt: skip
    if rows[0][1] == "``":
        return _table(_without_second(titles), map(_without_second, rows))
    return _table(titles, rows)


def _without_second(row: tuple[str, ...]) -> tuple[str, ...]:
    return row[:1] + row[2:]


def _table(titles: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """A table in Markdown; a bar in a cell is escaped, also within code, as GitHub wants it."""
    cells = [titles, ("---",) * len(titles), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |\n" for row in cells)
