"""``python -m services.up`` with stand-ins as children: READY_TIMEOUT_S NAME=BEHAVIOUR..."""

import os
import sys
from pathlib import Path

from services.up.app import Service, run
from shared.config import Settings

PROGRAM = Path(__file__).with_name("stand_in_service.py")


def services(settings: Settings) -> list[Service]:
    return [
        Service(
            name=name,
            argv=(sys.executable, "-I", str(PROGRAM), name, behaviour, str(settings.api.port)),
            address=f"address of the {name}",
            drains=name in ("router", "api"),
            restart_base_s=0.05,
        )
        for name, behaviour in (word.split("=") for word in sys.argv[2:])
    ]


if __name__ == "__main__":
    sys.exit(run(os.environ, services, float(sys.argv[1])))
