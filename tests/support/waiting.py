"""Waiting for a condition."""

import time
from collections.abc import Callable

import pytest


def wait_for(condition: Callable[[], object]) -> None:
    """Wait until a condition holds; fails the test if it does not within a minute."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if condition():
            return
        time.sleep(0.01)
    pytest.fail("waited a minute in vain")
