"""A Docker engine to try the container files on: the one that answers, else one to throw away after.

Our own needs root on Debian and no registry: base images are stand-ins, built from Debian's packages and from
a Python of this machine. It leaves the firewall alone, so that a build must use the host's network.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

PACKAGES = ("docker.io", "containerd", "runc", "iptables", "tini", "debootstrap")
ROOT_FS_PACKAGES = (
    "ca-certificates", "redis-server", "libsqlite3-0", "libffi8", "libreadline8", "libbz2-1.0", "libexpat1",
)  # fmt: skip
"""Redis, and the libraries that Python links to."""
_RELEASE = "bookworm"
_START_S = 30.0
_STOP_S = 60.0
_INSTALL_S = 600.0


class EngineMissing(Exception):
    """There is no engine and none can be had here; the message says what is missing."""


@dataclass(frozen=True, slots=True)
class Engine:
    """``environ`` leads the command lines to it; a build of ``own`` needs the host's network."""

    environ: Mapping[str, str]
    own: bool

    def docker(self, *arguments: str) -> str:
        """What ``docker`` prints; raises ``CalledProcessError``."""
        return output(("docker", *arguments), self.environ)


def output(command: Sequence[str], environ: Mapping[str, str], *, timeout_s: float = _INSTALL_S) -> str:
    """What a command prints; raises ``CalledProcessError`` with all of it if it fails."""
    done = subprocess.run(
        command,
        env=dict(environ),
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )
    if done.returncode:
        error = subprocess.CalledProcessError(done.returncode, command, done.stdout, done.stderr)
        error.add_note(done.stdout[-2000:] + done.stderr[-4000:])
        raise error
    return done.stdout


@contextmanager
def docker_engine(redis_image: str, python_image: str) -> Iterator[Engine]:
    """An engine that has, or can pull, these two images; raises ``EngineMissing``."""
    if _answers(os.environ):
        yield Engine(dict(os.environ), own=False)
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise EngineMissing("no Docker engine answers; one of our own needs root and Debian")
    _install()
    with TemporaryDirectory(prefix="engine-") as name:
        directory = Path(name)
        with _daemon(directory) as environ:
            _import_images(directory, environ, redis_image, python_image)
            yield Engine(environ, own=True)


def _answers(environ: Mapping[str, str]) -> bool:
    if shutil.which("docker") is None:
        return False
    return subprocess.run(["docker", "version"], env=dict(environ), capture_output=True).returncode == 0


def _install() -> None:
    if all(shutil.which(program) for program in ("dockerd", "debootstrap", "tini-static", "runc")):
        return
    environ = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    output(("apt-get", "install", "-y", "--no-install-recommends", *PACKAGES), environ)


@contextmanager
def _daemon(directory: Path) -> Iterator[dict[str, str]]:
    address = f"unix://{directory}/docker.sock"
    environ = {**os.environ, "DOCKER_HOST": address}
    command = [
        "dockerd", "--data-root", str(directory / "data"), "--exec-root", str(directory / "exec"),
        "--pidfile", str(directory / "docker.pid"), "--host", address, "--storage-driver", "overlay2",
        "--iptables=false", "--ip6tables=false", "--ip-masq=false",
        "--init-path", str(shutil.which("tini-static")),
    ]  # fmt: skip
    log = directory / "dockerd.log"
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, stdin=subprocess.DEVNULL)
    try:
        limit = time.monotonic() + _START_S
        while not _answers(environ):
            if process.poll() is not None or time.monotonic() > limit:
                raise EngineMissing(f"dockerd does not start: {log.read_text(errors='replace')[-2000:]}")
        yield environ
    finally:
        process.terminate()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        _unmount_below(directory)


def _unmount_below(directory: Path) -> None:
    """The daemon leaves at least its network namespace mounted, and a mount point can't be deleted."""
    points = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    for point in reversed([point for point in points if Path(point).is_relative_to(directory)]):
        output(("umount", point), os.environ)


def _import_images(directory: Path, environ: Mapping[str, str], redis: str, python: str) -> None:
    system = directory / "system"
    mirror = output(("apt-get", "indextargets", "--format", "$(REPO_URI)"), environ).split()[0]
    packages = ",".join(ROOT_FS_PACKAGES)
    bootstrap = ("debootstrap", "--variant=minbase", f"--include={packages}", _RELEASE, str(system), mirror)
    output(bootstrap, environ)
    (system / "data").mkdir()
    output(("chroot", str(system), "chown", "redis:redis", "/data"), environ)
    _import(system, environ, redis, "VOLUME /data", 'CMD ["redis-server"]')
    _add_python(system, environ)
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    _import(system, environ, python, f"ENV PATH={path}", 'CMD ["python3"]')
    shutil.rmtree(system)


def _add_python(system: Path, environ: Mapping[str, str]) -> None:
    program, version = _python(environ)
    prefix = output((program, "-c", "import sys; print(sys.base_prefix)"), environ).strip()
    shutil.copytree(
        prefix, system / "usr/local", symlinks=True, dirs_exist_ok=True, ignore=_nothing_installed
    )
    (system / "usr/local/bin/python").unlink(missing_ok=True)
    (system / "usr/local/bin/python").symlink_to(f"python{version}")
    output(("chroot", str(system), "ldconfig"), environ)
    # Whatever authority and index pip trusts here, it needs in there as well.
    authorities = Path("/etc/ssl/certs/ca-certificates.crt")
    (system / "etc/pip.conf").write_text(f"[global]\ncert = {authorities}\n")
    (system / authorities.relative_to("/")).write_bytes(authorities.read_bytes())


def _python(environ: Mapping[str, str]) -> tuple[str, str]:
    """The interpreter to copy and its version: ``VERIFY_PYTHON``, else 3.12 if there is one, else our own."""
    asked = "import sys; print('%d.%d' % sys.version_info[:2])"
    for program in (environ.get("VERIFY_PYTHON"), shutil.which("python3.12")):
        found = program and subprocess.run([program, "-c", asked], capture_output=True, text=True)
        if program and found and found.returncode == 0:
            return program, found.stdout.strip()
    return sys.executable, output((sys.executable, "-c", asked), environ).strip()


def _nothing_installed(directory: str, names: list[str]) -> set[str]:
    """The standard library without its tests, and of what was installed beside it only pip."""
    if Path(directory).name == "site-packages":
        return {name for name in names if not name.startswith("pip")}
    return {"test", "__pycache__"} & set(names)


def _import(system: Path, environ: Mapping[str, str], image: str, *changes: str) -> None:
    flags = [word for change in changes for word in ("--change", change)]
    process = subprocess.Popen(
        ["docker", "import", *flags, "-", image],
        env=dict(environ), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    assert process.stdin is not None
    with process.stdin as pipe, tarfile.open(fileobj=pipe, mode="w|") as archive:
        archive.add(system, arcname=".")
    if process.wait():
        raise EngineMissing(f"docker import {image} fails")
