"""The settings as the command line reads them: those of the services, less its own variables."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shared.config import Settings

OWN_VARIABLES = ("ORCH_API_URL", "ORCH_API_KEY")
"""What only the command line reads; to the services they would be settings that they don't know."""


def environ(path: str | None = None) -> dict[str, str]:
    """This process's environment for a service, with ``path`` as the settings file where one is given."""
    kept = {name: value for name, value in os.environ.items() if name not in OWN_VARIABLES}
    return kept if path is None else {**kept, "ORCH_CONFIG": path}


def load(path: str | None = None) -> Settings:
    """The settings in effect; raises ``ConfigError``."""
    # A quarter of a second of imports, which a command that was told a URL does not need.
    from shared import config

    return config.load(environ(path))
