"""Fixtures for all tests."""

import signal

from hypothesis import HealthCheck, settings

pytest_plugins = [
    "tests.kit.fixtures",
    "tests.kit.redis_fixture",
    "tests.kit.store_fixture",
    "tests.kit.cli",
    "tests.kit.cli_stack",
    "tests.kit.api_fixture",  # imports the one above it, which must be registered first
    "tests.kit.vllm_fixtures",  # the same
]

# How long an example takes says more about the machine than about the code: by default 0.2 s are a failure.
settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")

# A shell that runs us in the background lets us ignore Ctrl-C, and so would every program that a test starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
