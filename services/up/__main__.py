"""``python -m services.up``: everything on this machine, from the settings; what ``make up`` starts."""

from __future__ import annotations

import os
import sys

from services.up.app import run, services_of

if __name__ == "__main__":
    sys.exit(run(os.environ, services_of))
