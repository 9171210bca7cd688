"""Waiting for a condition."""

import time
from collections.abc import Callable

import pytest


def wait_for(condition: Callable[[], object]) -> None:
    """Wait up to 10 seconds until a condition holds; fails the test if it does not."""
    for _ in range(1000):
        if condition():
            return
        time.sleep(0.01)
    pytest.fail("waited 10 s in vain")
