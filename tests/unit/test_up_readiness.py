"""What the supervisor takes for a ready api: one that says so, or that keeps it from whoever has no key."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest

from services.up import readiness
from shared.config import ApiSettings


@contextmanager
def answering(statuses: dict[str, int]) -> Iterator[ApiSettings]:
    """A server that answers these paths with these statuses."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(statuses[self.path])
            self.end_headers()
            self.wfile.write(b'{"detail": "so"}')

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield ApiSettings(host="0.0.0.0", port=server.server_port)
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("ready", "healthy", "said"),
    [
        (200, 200, None),
        (503, 200, '/readyz says 503: {"detail": "so"}'),
        (401, 200, None),
        (401, 500, '/healthz says 500: {"detail": "so"}'),
    ],
)
def test_an_api_that_wants_a_key_is_ready_once_it_answers(ready: int, healthy: int, said: str | None) -> None:
    with answering({"/readyz": ready, "/healthz": healthy}) as settings:
        assert readiness.missing(settings) == said


def test_nobody_there_is_one_line_with_the_address() -> None:
    with answering({}) as settings:
        gone = settings

    said = readiness.missing(gone)
    assert said is not None
    assert said.startswith(f"the api does not answer on http://127.0.0.1:{gone.port}/readyz (")
