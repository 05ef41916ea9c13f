"""What the OpenAPI document says of keys, and of what the rim may answer to any call."""

from __future__ import annotations

from typing import Any

from services.api import problems
from services.api.gateway.dialects import ANTHROPIC
from services.api.routes.openai import ANTHROPIC_ERROR, OPENAI_ERROR
from services.api.security import HEALTH, dialect_of

_SCHEMES: dict[str, Any] = {
    "bearer": {
        "type": "http",
        "scheme": "bearer",
        "description": "A key that `gpu-orchestrator keys create` made; asked for once there is one",
    },
    "xApiKey": {
        "type": "apiKey",
        "in": "header",
        "name": "x-api-key",
        "description": "The same, as Anthropic's clients send it",
    },
}
_ANSWERS = {
    401: "Keys are asked for, and none or no good one came",
    403: "The key does not allow this, or the page of another site asks for it",
    421: "The api does not answer to the name in Host",
}


def describe(document: dict[str, Any]) -> None:
    """Add to a document what holds for all of its calls but the health check."""
    document["components"]["securitySchemes"] = _SCHEMES
    document["security"] = [{name: []} for name in _SCHEMES] + [{}]
    for path, calls in document["paths"].items():
        for call in calls.values():
            if path == HEALTH:
                call["security"] = []
            else:
                call["responses"] |= {
                    name: it for name, it in _answers(path).items() if name not in call["responses"]
                }


def _answers(path: str) -> dict[str, Any]:
    dialect = dialect_of(path)
    if dialect is None:
        native = problems.responses(*_ANSWERS)
        return {str(status): {**native[status], "description": said} for status, said in _ANSWERS.items()}
    schema = {"$ref": f"#/components/schemas/{ANTHROPIC_ERROR if dialect is ANTHROPIC else OPENAI_ERROR}"}
    content = {"application/json": {"schema": schema}}
    return {str(status): {"description": said, "content": content} for status, said in _ANSWERS.items()}
