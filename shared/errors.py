"""The errors that cross a module border, in one tree so that callers can write their tables from names.

OrchestratorError
├── ConfigError          a setting is wrong: names the key, the value and what is allowed
├── InvalidRequest       a job or call is wrong: names the field and the remedy
├── StoreUnavailable     Redis does not answer, or refuses writes for now
├── StoreUnusable        Redis answers but must not be used (too old, evicting)
└── InstanceTaken        another live process has this instance name
"""


class OrchestratorError(Exception):
    """Anything this project raises on purpose."""


class ConfigError(OrchestratorError):
    """A setting is wrong; the message names the key, the value and what is allowed."""


class InvalidRequest(OrchestratorError):
    """A request cannot be accepted as it is.

    ``field`` is the offending field (dotted path, empty for the whole body); the message says the remedy.
    """

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}" if field else message)
        self.field = field
        self.message = message


class StoreUnavailable(OrchestratorError):
    """Redis does not answer, is loading, or refuses writes; the same call may succeed later."""


class StoreUnusable(OrchestratorError):
    """Redis answers, but its version or settings would lose jobs."""


class InstanceTaken(OrchestratorError):
    """Another live process is registered under this instance name."""
