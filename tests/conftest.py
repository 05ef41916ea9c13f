"""Fixtures for all tests."""

pytest_plugins = [
    "tests.kit.fixtures",
    "tests.kit.redis_fixture",
    "tests.kit.store_fixture",
    "tests.kit.cli",
    "tests.kit.cli_stack",
    "tests.kit.api_fixture",  # imports the one above it, which must be registered first
    "tests.kit.vllm_fixtures",  # the same
]
