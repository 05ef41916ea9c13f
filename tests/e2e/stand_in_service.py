"""A child for the supervisor's tests: NAME BEHAVIOUR [PORT]; notes its orderly end in a file ``stopped``."""

import os
import signal
import sys
import types
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path


class Readiness(BaseHTTPRequestHandler):
    status = 200

    def do_GET(self) -> None:
        self.send_response(self.status if self.path == "/readyz" else 404)
        self.end_headers()
        self.wfile.write(b'{"redis": "ok",\n "router": "none alive"}')


def stop(_number: int, _frame: types.FrameType | None) -> None:
    with Path("stopped").open("a") as file:
        file.write(f"{sys.argv[1]}\n")
    os._exit(0)


def main() -> None:
    name, behaviour = sys.argv[1:3]
    signal.signal(signal.SIGTERM, signal.SIG_IGN if behaviour == "stubborn" else stop)
    settings = sorted(variable for variable in os.environ if variable.startswith("ORCH_"))
    sys.stdout.write(f"{name} runs with {' '.join(settings)}\n")
    sys.stdout.flush()
    first = not Path(f"{name}-ran").exists()
    Path(f"{name}-ran").touch()
    if behaviour == "dies" or (behaviour == "dies-once" and first):
        sys.exit(f"{name} cannot go on")
    if behaviour in ("ready", "unready"):
        Readiness.status = 200 if behaviour == "ready" else 503
        HTTPServer(("127.0.0.1", int(sys.argv[3])), Readiness).serve_forever()
    while True:
        signal.pause()


if __name__ == "__main__":
    main()
