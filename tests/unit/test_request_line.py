"""The line that the log has of a request."""

from __future__ import annotations

from loguru import logger
from starlette.types import Message, Receive, Scope, Send

from services.api.request_id import answer_with_id


async def _answers_nothing(_scope: Scope, _receive: Receive, _send: Send) -> None:
    return


async def _receive() -> Message:
    return {"type": "http.disconnect"}


async def _send(_message: Message) -> None:
    return


async def test_of_a_long_path_only_the_beginning_is_written() -> None:
    paths: list[str] = []
    sink = logger.add(
        lambda message: paths.append(message.record["extra"]["path"]), format=lambda _: "", level="DEBUG"
    )
    try:
        scope = {"type": "http", "method": "GET", "path": f"/@{'a' * 24_000}", "headers": []}
        await answer_with_id(_answers_nothing, scope, _receive, _send)
    finally:
        logger.remove(sink)

    assert paths == [f"/@{'a' * 254}"]
