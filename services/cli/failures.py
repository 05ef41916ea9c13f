"""What a command can end with: the exit codes, and the errors that stand for them."""

from __future__ import annotations

from enum import IntEnum

from shared.errors import ConfigError, InvalidRequest, OrchestratorError, StoreUnavailable


class ExitCode(IntEnum):
    """The status that a command ends with; ``--help`` lists them."""

    OK = 0
    REFUSED = 1
    USAGE = 2
    UNREACHABLE = 3
    TIMED_OUT = 4
    INTERRUPTED = 130


MEANINGS = {
    ExitCode.OK: "done",
    ExitCode.REFUSED: "refused, or the job or the benchmark failed",
    ExitCode.USAGE: "wrong usage or wrong settings",
    ExitCode.UNREACHABLE: "the orchestrator or its Redis can't be reached",
    ExitCode.TIMED_OUT: "--timeout passed; the job goes on",
    ExitCode.INTERRUPTED: "interrupted by Ctrl-C",
}


class CommandError(OrchestratorError):
    """A command cannot do what was asked; the message is one line for a person."""

    code = ExitCode.REFUSED


class Refused(CommandError):
    """The orchestrator said no, or what was waited for failed."""


class WrongUsage(CommandError):
    """What was typed, or set in the environment, makes no sense."""

    code = ExitCode.USAGE


class Unreachable(CommandError):
    """The orchestrator does not answer, or cannot serve for now."""

    code = ExitCode.UNREACHABLE


class TimedOut(CommandError):
    """What was waited for did not come in the time that was given."""

    code = ExitCode.TIMED_OUT


def exit_code(error: OrchestratorError) -> ExitCode:
    """The exit code that an error ends a command with."""
    match error:
        case CommandError():
            return error.code
        case ConfigError() | InvalidRequest():
            return ExitCode.USAGE
        case StoreUnavailable():
            return ExitCode.UNREACHABLE
    return ExitCode.REFUSED
