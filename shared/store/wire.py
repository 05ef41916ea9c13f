"""Connections that many calls share, each answered in the order in which it was sent (docs/adr/0018)."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from math import inf
from time import monotonic
from typing import Any, cast

import hiredis
from redis.asyncio import Redis
from redis.asyncio.connection import SSLConnection
from redis.asyncio.retry import Retry
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from shared.limit import deadlines

Word = str | bytes | int
BROKEN = (RedisConnectionError, RedisTimeoutError)
"""What a call raises whose effect is not known: it may be repeated if it is safe under its own replay."""
# Its type stub says that a command has one word.
_PACK: Callable[[tuple[Word, ...]], bytes] = cast(Any, hiredis.pack_command)
_NO_MORE = object()
_ERRORS: dict[str, type[Exception]] = {
    "NOSCRIPT": NoScriptError,
    "READONLY": ReadOnlyError,
    "LOADING": BusyLoadingError,
    "OOM": OutOfMemoryError,
    "NOAUTH": AuthenticationError,
    "WRONGPASS": AuthenticationError,
}
_SLOW_S = 0.05
_MOST = 8


class Wires:
    """The connections of one client; a call goes over the first that is not held up.

    For scripts that are safe under their own replay. Against redis-py's own way, which takes a connection out
    of a pool for every command, a call costs a fifth of the CPU time (docs/adr/0018).
    """

    def __init__(self, options: Options) -> None:
        self._options = options
        self._wires: list[_Wire] = []
        self._closed = False

    async def call(self, *words: Word) -> Any:
        """``send`` for a command that is not packed yet."""
        return await self.send(packed(*words))

    async def send(self, command: bytes) -> Any:
        """Send one ``packed`` command; raises what ``BROKEN`` names, and ``ResponseError``."""
        if self._closed:
            raise RedisConnectionError("closed")
        wire = self._best()
        if wire.protocol is None:
            await wire.connect()
        return await wire.send(command)

    async def aclose(self) -> None:
        """Drop all connections for good; calls under way raise ``ConnectionError``."""
        self._closed = True
        wires, self._wires = self._wires, []
        for wire in wires:
            await wire.aclose()

    def _best(self) -> _Wire:
        now = monotonic()
        for wire in self._wires:
            if now - wire.waits_since(now) < _SLOW_S:
                return wire
        # All are held up: by a dead connection, or by a large reply.
        if len(self._wires) < _MOST:
            self._wires.append(_Wire(self._options))
            return self._wires[-1]
        return min(self._wires, key=lambda wire: now - wire.waits_since(now))


@dataclass(frozen=True, slots=True)
class Options:
    """Where to connect and how, as redis-py read it from the URL. Times in s."""

    connection_class: type[Any]
    options: dict[str, Any]

    @property
    def timeout_s(self) -> float:
        return float(self.options["socket_timeout"])

    async def open(self) -> Replies:
        """A connection that has introduced itself; raises ``OSError`` or ``TimeoutError``."""
        options = self.options
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(options["socket_connect_timeout"]):
            if "path" in options:
                _, protocol = await loop.create_unix_connection(Replies, options["path"])
            else:
                encrypted = issubclass(self.connection_class, SSLConnection)
                context = SSLConnection(**options).ssl_context.get() if encrypted else None
                host, port = options.get("host", "localhost"), int(options.get("port", 6379))
                _, protocol = await loop.create_connection(Replies, host, port, ssl=context)
            try:
                for words in _introduction(options):
                    await protocol.send(packed(*words))
            except ResponseError as error:
                # Too many clients, for instance: it passes, unlike a wrong command.
                protocol.drop(RedisConnectionError(str(error)))
                raise RedisConnectionError(str(error)) from error
            except BaseException:
                protocol.drop(RedisConnectionError("it did not take our introduction"))
                raise
        return protocol


async def opened(options: Options) -> Replies:
    """A connection that can be used; raises redis-py's ``ConnectionError`` or ``TimeoutError``."""
    try:
        return await options.open()
    except TimeoutError:
        raise RedisTimeoutError("it takes too long to connect to Redis") from None
    except OSError as error:
        raise RedisConnectionError(f"no connection to Redis: {error.strerror or error}") from error


class CommandClient(Redis):
    """redis-py's client, and shared connections to the same server for its scripts."""

    @cached_property
    def wires(self) -> Wires:
        """Opened when they are first used, closed with the client."""
        pool = self.connection_pool
        return Wires(Options(pool.connection_class, pool.connection_kwargs))

    async def send(self, command: bytes) -> Any:
        """``Wires.send``, repeated as redis-py repeats where a connection breaks."""
        try:
            return await self.wires.send(command)
        except BROKEN as error:
            broke: list[Exception] = [error]

        async def again() -> Any:
            if broke:
                raise broke.pop()  # the first try is behind us
            return await self.wires.send(command)

        async def leave(_: Exception) -> None:
            """The connection was closed as it broke."""

        retry: Retry = self.connection_pool.connection_kwargs["retry"]
        return await retry.call_with_retry(again, leave)

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        """Close all connections."""
        await self.wires.aclose()
        await super().aclose(close_connection_pool)


def _introduction(options: dict[str, Any]) -> list[list[Word]]:
    hello: list[Word] = ["HELLO", "3"]
    if options.get("password"):
        hello += ["AUTH", options.get("username") or "default", options["password"]]
    if options.get("client_name"):
        hello += ["SETNAME", options["client_name"]]
    return [hello, ["SELECT", options["db"]]] if options.get("db") else [hello]


class _Wire:
    """One connection, opened when it is first needed and again after it broke."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._opening: asyncio.Task[None] | None = None
        self._closed = False
        self.protocol: Replies | None = None

    def waits_since(self, now: float) -> float:
        """Since when its first unanswered call waits; ``now`` if none does."""
        return self.protocol.oldest(now) if self.protocol is not None else now

    async def connect(self) -> None:
        if self._opening is None:
            self._opening = asyncio.create_task(self._open())
            self._opening.add_done_callback(self._opened)
        opening = self._opening
        try:
            await asyncio.shield(opening)
        except asyncio.CancelledError:
            if self._closed and opening.cancelled():
                raise RedisConnectionError("closed") from None
            raise

    async def send(self, command: bytes) -> Any:
        protocol = self.protocol
        if protocol is None:
            raise RedisConnectionError("the connection broke as it was opened")
        try:
            return await protocol.send(command, self._options.timeout_s)
        except ReadOnlyError:
            # After a failover the connection still leads to the demoted node.
            protocol.drop(RedisConnectionError("this node became a replica"))
            raise
        finally:
            if protocol.closed and self.protocol is protocol:
                self.protocol = None

    async def aclose(self) -> None:
        self._closed = True
        if self.protocol is not None:
            self.protocol.close()
            self.protocol = None
        if self._opening is not None:
            self._opening.cancel()
            await asyncio.wait({self._opening})

    async def _open(self) -> None:
        self.protocol = await opened(self._options)

    def _opened(self, task: asyncio.Task[None]) -> None:
        self._opening = None
        if not task.cancelled():
            task.exception()  # whoever waits is told


class Replies(asyncio.Protocol):
    """Hands every reply to the call that waits for it.

    ``due`` is when the oldest of them has waited for too long: then the connection is of no use any more.
    """

    def __init__(self) -> None:
        self._reader = hiredis.Reader(encoding="utf-8", errors="backslashreplace", notEnoughData=_NO_MORE)
        self._calls: deque[tuple[asyncio.Future[Any], float, float]] = deque()
        self._unsent: list[bytes] = []
        self._transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()
        self._deadlines = deadlines()
        self.closed = False
        self.due = inf

    def oldest(self, now: float) -> float:
        return self._calls[0][1] if self._calls else now

    async def send(self, command: bytes, timeout_s: float | None = None) -> Any:
        """One command and its reply, to be there in ``timeout_s``."""
        if self.closed or self._transport is None:
            raise RedisConnectionError("the connection to Redis is closed")
        reply: asyncio.Future[Any] = self._loop.create_future()
        now = monotonic()
        due = inf if timeout_s is None else now + timeout_s
        self._calls.append((reply, now, due))
        if len(self._calls) == 1:
            self.due = due
            self._deadlines.sooner(due)
        self._unsent.append(command)
        if len(self._unsent) == 1:
            # A write costs more than a call: what else is asked for in this turn of the loop goes with it.
            self._loop.call_soon(self._flush)
        # Whoever leaves stays among the calls: nobody else may be waiting on a connection that is silent.
        return await reply

    def overdue(self) -> None:
        """Its oldest call has waited for too long."""
        self.drop(RedisTimeoutError("Redis did not answer in time"))

    def _flush(self) -> None:
        unsent, self._unsent = self._unsent, []
        if self._transport is not None and not self.closed:
            self._transport.write(unsent[0] if len(unsent) == 1 else b"".join(unsent))

    def close(self) -> None:
        """Close it now."""
        self.drop()

    def drop(self, error: Exception | None = None) -> None:
        """Close it now; whoever waits is told ``error``."""
        error = error or RedisConnectionError("closed")
        self.closed = True
        self.due = inf
        self._deadlines.forget(self)
        if self._transport is not None:
            self._transport.abort()
        calls, self._calls = self._calls, deque()
        for reply, _, _ in calls:
            if not reply.done():
                reply.set_exception(error)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by its type
        self._deadlines.watch(self)

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        try:
            while (found := self._reader.gets()) is not _NO_MORE:
                if not isinstance(found, hiredis.PushNotification):
                    self._answer(found)
        except hiredis.ProtocolError:
            self.drop(RedisConnectionError("what answers there does not speak Redis"))

    def connection_lost(self, exc: Exception | None) -> None:
        self.drop(RedisConnectionError(f"the connection to Redis broke: {exc or 'closed by the server'}"))

    def _answer(self, found: Any) -> None:
        if not self._calls:
            self.drop(RedisConnectionError(f"Redis said unasked: {found}"))
            return
        reply, _, _ = self._calls.popleft()
        self.due = due = self._calls[0][2] if self._calls else inf
        self._deadlines.sooner(due)
        if reply.done():
            return  # whoever asked waits no more
        if isinstance(found, hiredis.ReplyError):
            reply.set_exception(_error_of(str(found)))
        else:
            reply.set_result(found)


def _error_of(text: str) -> Exception:
    """As redis-py tells them apart: what passes is no ``ResponseError`` to it."""
    word = text.partition(" ")[0]
    if "max number of clients" in text:
        return RedisConnectionError(text)
    return _ERRORS.get(word, ResponseError)(text)


def packed(*words: Word) -> bytes:
    """One command as it goes over the wire."""
    try:
        return _PACK(words)
    except UnicodeEncodeError:
        # As redis-py is told to send what is no UTF-8.
        return _PACK(tuple(map(_escaped, words)))


def _escaped(word: Word) -> Word:
    return word.encode("utf-8", "backslashreplace") if isinstance(word, str) else word
