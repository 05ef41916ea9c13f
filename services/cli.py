"""The command line ``gpu-orchestrator``: start everything, or talk to Redis where there is no redis-cli."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version

from shared import config
from shared.errors import OrchestratorError
from shared.store import raw


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0, 1 (refused, unreachable, wrong setting), 2 (usage)."""
    options = _parser().parse_args(argv)
    try:
        if options.command == "up":
            return _up(options.config)
        return _redis(options.url, options.port, options.words)
    except OrchestratorError as error:
        print(f"gpu-orchestrator: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of a pipe (head, grep -m) had enough; without this Python complains once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gpu-orchestrator", description="GPU-aware load balancing for local LLMs."
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {version('gpu-orchestrator')}")
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", help="start everything, as `make up` does after installing")
    up.add_argument("--config", metavar="FILE", help="settings (default: $ORCH_CONFIG, else built-in ones)")
    redis = commands.add_parser("redis", help="one Redis command, printed as redis-cli does")
    where = redis.add_mutually_exclusive_group()
    where.add_argument("-p", "--port", type=int, help="port on 127.0.0.1")
    where.add_argument("-u", "--url", help="redis://, rediss:// or unix:// (default: the settings' Redis)")
    redis.add_argument(
        "words", metavar="COMMAND", nargs=argparse.REMAINDER, help="such as: XLEN orch:decisions"
    )
    return parser


def _up(path: str | None) -> int:
    if path is not None:
        os.environ["ORCH_CONFIG"] = path
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "services.up"])


def _redis(url: str | None, port: int | None, words: Sequence[str]) -> int:
    if not words:
        print("gpu-orchestrator redis: say a command, such as: XLEN orch:decisions", file=sys.stderr)
        return 2
    if port is not None:
        url = f"redis://127.0.0.1:{port}/0"
    reply: raw.Reply = None
    for reply in raw.replies(url or config.load(os.environ).redis.effective_url, words):
        sys.stdout.buffer.write(raw.shown(reply, words, sys.stdout.isatty()) + b"\n")
        sys.stdout.buffer.flush()
    return 1 if isinstance(reply, raw.Failure) else 0


if __name__ == "__main__":
    sys.exit(main())
