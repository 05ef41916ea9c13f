"""A program that becomes another one which the kernel ends as soon as its parent is gone (Linux).

Started as ``python -I -S tether.py PARENT_PID SIGNAL PROGRAM ARGUMENT...``. A SIGKILLed supervisor can run
no clean-up and a watching process can be killed as well, so the kernel's own parent-death signal is used;
an exec wrapper sets it, since it survives exec and Python code between fork and exec may deadlock.
Elsewhere (macOS) there is no such signal: the program then merely starts.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Sequence

PR_SET_PDEATHSIG = 1
"""From linux/prctl.h."""


def tethered(argv: Sequence[str], signal_number: int) -> list[str]:
    """The command that runs ``argv`` so that it gets this signal when the caller ends.

    The kernel ties a child to the *thread* that started it: call it from one that lives as long as needed.
    """
    return [sys.executable, "-I", "-S", __file__, str(os.getpid()), str(signal_number), *argv]


def main() -> None:
    parent, signal_number, command = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(PR_SET_PDEATHSIG, signal_number, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
        # The parent may have died before the call above; then nobody would ever send the signal.
        if os.getppid() != parent:
            sys.exit(f"{command[0]}: not started, its parent {parent} is gone")
    try:
        os.execvp(command[0], command)
    except OSError as error:
        sys.exit(f"{command[0]}: cannot be started: {error.strerror}")


if __name__ == "__main__":
    main()
