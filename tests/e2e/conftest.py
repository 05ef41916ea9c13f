"""Fixtures of the tests with OpenAI's client, which no other test has to import."""

from tests.kit.openai_stack import embedding_llama, openai_stack

__all__ = ["embedding_llama", "openai_stack"]
