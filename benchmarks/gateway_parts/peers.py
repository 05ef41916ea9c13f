"""Installs the peers of the benchmarks, pinned, in environments of their own below ``.venv-peers``."""

from __future__ import annotations

import shutil
import subprocess
import sys
import venv
from pathlib import Path

from benchmarks.gateway_parts.processes import Unavailable

VERSIONS = {
    "litellm": "litellm[proxy]==1.106.2",
    "sglang-router": "sglang-router==0.3.2",
    "vllm-router": "vllm-router==0.1.17",
}
"""The versions of the first survey of this machine class; newer ones may be faster or slower."""
_INSTALL_S = 900.0


def peer_programs(directory: Path, name: str) -> Path:
    """The ``bin`` directory of an installed peer, installed first if need be.

    Raises ``Unavailable`` where it cannot be installed (no network, no wheel for this machine).
    """
    wanted = VERSIONS[name]
    return installed(directory, name, wanted, mark=wanted)


def installed(directory: Path, name: str, *arguments: str, mark: str) -> Path:
    """The ``bin`` of the environment ``name``, made by ``pip install`` with these arguments if need be.

    ``mark`` says what is in it: with another one than last time it is made anew. Raises ``Unavailable``.
    """
    home = directory / name
    marked, said = home / "installed", " ".join(arguments)
    if marked.exists() and marked.read_text() == mark:
        return home / "bin"
    print(f"installing {said} into {home} ...", file=sys.stderr, flush=True)
    directory.mkdir(parents=True, exist_ok=True)
    # Nobody wants these in a commit, whatever the checkout ignores.
    (directory / ".gitignore").write_text("*\n")
    shutil.rmtree(home, ignore_errors=True)
    venv.create(home, with_pip=True)
    try:
        done = subprocess.run(
            [str(home / "bin" / "python"), "-m", "pip", "install", "--quiet", *arguments],
            capture_output=True,
            text=True,
            timeout=_INSTALL_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise Unavailable(f"{said} was not installed within {_INSTALL_S:.0f} s") from None
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        raise Unavailable(f"{said} cannot be installed: {last}")
    marked.write_text(mark)
    return home / "bin"
