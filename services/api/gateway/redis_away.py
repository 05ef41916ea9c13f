"""How long a client waits for a Redis that does not answer."""

from __future__ import annotations

STORE_TIMEOUT_S = 3.0
"""The longest that a client waits for a Redis that hangs before it gets its 503."""
