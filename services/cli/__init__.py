"""The command line ``gpu-orchestrator``: start everything, ask it, and read along."""

from services.cli.app import main

__all__ = ["main"]
