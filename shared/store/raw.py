"""One raw Redis command and its reply as redis-cli prints it, for machines without redis-cli."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import BinaryIO

from redis.connection import ConnectionPool, SSLConnection

from shared.errors import ConfigError, StoreUnavailable

_FOLLOWING = frozenset({"MONITOR", "SUBSCRIBE", "PSUBSCRIBE", "SSUBSCRIBE"})
"""Commands whose replies never end."""
_TEXTS = frozenset(
    {"INFO", "CLIENT LIST", "CLIENT INFO", "CLUSTER INFO", "CLUSTER NODES", "MEMORY DOCTOR", "LATENCY DOCTOR"}
)
"""Commands whose reply is a text of lines."""
_CONNECT_TIMEOUT_S = 3.0


@dataclass(frozen=True, slots=True)
class Status:
    """A simple string such as OK, which redis-cli prints unquoted."""

    text: bytes


@dataclass(frozen=True, slots=True)
class Failure:
    """An error reply, such as ``WRONGTYPE Operation against ...``."""

    text: bytes


Reply = int | bytes | Status | Failure | None | list["Reply"]


def replies(url: str, command: Sequence[str]) -> Iterator[Reply]:
    """Send one command and yield its reply; several for MONITOR and SUBSCRIBE. Blocks as long as Redis does.

    redis-py's own replies can't tell a status from a string and lose parts of error texts, so the reply
    is read here, in the protocol's version 2 (https://redis.io/docs/latest/develop/reference/protocol-spec/).
    Raises ``ConfigError`` for an unusable URL, ``StoreUnavailable`` where Redis can't be reached.
    """
    try:
        pool = ConnectionPool.from_url(url)
    except ValueError as error:
        raise ConfigError(f"redis.url: {error}") from None
    options = pool.connection_kwargs
    where = str(options.get("path") or f"{options.get('host', 'localhost')}:{options.get('port', 6379)}")
    try:
        with (
            _connect(options, issubclass(pool.connection_class, SSLConnection)) as connection,
            connection.makefile("rb") as stream,
        ):
            for preparation in _preparations(options):
                connection.sendall(_packed(preparation))
                answer = _read(stream)
                if isinstance(answer, Failure):
                    raise StoreUnavailable(f"Redis at {where}: {answer.text.decode('utf-8', 'replace')}")
            connection.sendall(_packed(command))
            yield _read(stream)
            while command[0].upper() in _FOLLOWING:
                yield _read(stream)
    except OSError as error:
        raise StoreUnavailable(f"no Redis at {where}: {error.strerror or error}") from None


def _connect(options: Mapping[str, object], encrypted: bool) -> socket.socket:
    if "path" in options:
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(str(options["path"]))
        return connection
    address = (str(options.get("host", "localhost")), int(str(options.get("port", 6379))))
    connection = socket.create_connection(address, timeout=_CONNECT_TIMEOUT_S)
    connection.settimeout(None)
    if encrypted:
        authority = options.get("ssl_ca_certs")
        context = ssl.create_default_context(cafile=str(authority) if authority else None)
        return context.wrap_socket(connection, server_hostname=address[0])
    return connection


def _preparations(options: Mapping[str, object]) -> Iterator[list[str]]:
    if "password" in options:
        user = [str(options["username"])] if "username" in options else []
        yield ["AUTH", *user, str(options["password"])]
    if options.get("db"):
        yield ["SELECT", str(options["db"])]


def _packed(command: Sequence[str]) -> bytes:
    # Arguments that came over a command line may hold bytes that are no UTF-8.
    words = [word.encode("utf-8", "surrogateescape") for word in command]
    parts = [b"$%d\r\n%s\r\n" % (len(word), word) for word in words]
    return b"*%d\r\n%s" % (len(words), b"".join(parts))


def _read(stream: BinaryIO) -> Reply:
    line = stream.readline()
    if not line.endswith(b"\r\n"):
        raise ConnectionResetError(0, "connection closed by the server")
    kind, rest = line[:1], line[1:-2]
    match kind:
        case b"+":
            return Status(rest)
        case b"-":
            return Failure(rest)
        case b":":
            return int(rest)
        case b"$":
            return stream.read(int(rest) + 2)[:-2] if int(rest) >= 0 else None
        case b"*":
            return [_read(stream) for _ in range(int(rest))] if int(rest) >= 0 else None
        case _:
            raise ConnectionResetError(0, "what answers there does not speak Redis")


def shown(reply: Reply, command: Sequence[str], terminal: bool) -> bytes:
    """A reply as redis-cli shows it, without the last line break: quoted on a terminal, plain in a pipe."""
    words = [word.upper() for word in command[:2]]
    if words[0] in _TEXTS or " ".join(words) in _TEXTS:
        return plain(reply).rstrip(b"\r\n")
    return quoted(reply).encode() if terminal else plain(reply)


def quoted(reply: Reply, indent: str = "") -> str:
    """A reply as redis-cli shows it on a terminal, without the last line break."""
    match reply:
        case None:
            return "(nil)"
        case int():
            return f"(integer) {reply}"
        case Status():
            return reply.text.decode("utf-8", "replace")
        case Failure():
            return f"(error) {reply.text.decode('utf-8', 'replace')}"
        case bytes():
            return _quote(reply)
        case []:
            return "(empty array)"
    width = len(str(len(reply)))
    inner = indent + " " * (width + 2)
    items = (f"{number:>{width}}) {quoted(item, inner)}" for number, item in enumerate(reply, 1))
    return f"\n{indent}".join(items)


def plain(reply: Reply) -> bytes:
    """A reply as redis-cli writes it into a pipe: values alone, one a line, without the last line break."""
    match reply:
        case None:
            return b""
        case int():
            return b"%d" % reply
        case Status() | Failure():
            return reply.text
        case bytes():
            return reply
    return b"\n".join(plain(item) for item in reply)


_ESCAPES = {
    ord("\\"): "\\\\", ord('"'): '\\"', ord("\n"): "\\n", ord("\r"): "\\r", ord("\t"): "\\t",
    ord("\a"): "\\a", ord("\b"): "\\b",
}  # fmt: skip


def _quote(value: bytes) -> str:
    shown = (_ESCAPES.get(byte) or (chr(byte) if 32 <= byte < 127 else f"\\x{byte:02x}") for byte in value)
    return f'"{"".join(shown)}"'
