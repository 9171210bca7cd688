"""What suggestions depend on besides the records: the space, and the versions of libraries."""

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from importlib.metadata import version
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, distribution_to_json

import fgseg
from search.ledger.records import TrialRecord

LIBRARIES = ("optuna", "fgsearch", "numpy", "scipy")
"""Libraries that compute suggestions; fgsearch has the Gaussian process of `auto`."""
VERSIONS = ("space", "seed", "objective", "floors", *LIBRARIES)


installed = cache(version)


def library_versions() -> dict[str, str]:
    """Return the versions of LIBRARIES."""
    own = {"optuna": optuna.__version__, "fgsearch": fgseg.__version__}
    return own | {name: installed(name) for name in LIBRARIES if name not in own}


def digest(
    space: Mapping[str, BaseDistribution], start_point: Mapping[str, float], off_below: Mapping[str, float]
) -> str:
    """Return 12 hexadecimal digits that change with any range of a space and with its start point."""
    ranges = {name: distribution_to_json(distribution) for name, distribution in space.items()}
    start = {name: float(value) for name, value in start_point.items()}
    text = json.dumps([ranges, start, dict(off_below)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def changed_versions(record: TrialRecord, now: Mapping[str, Any]) -> list[str]:
    """Return a text for each version, see `StudySampler.versions`, that a suggestion had and that is another now.

    Trials of earlier versions of fgsearch have no versions of libraries.
    """
    then = {name: value for name, value in record.context.items() if name in VERSIONS}
    differing = [n for n in VERSIONS if then.get(n) != now.get(n) and (n in then or n not in LIBRARIES)]
    return [f"{name} was {then.get(name)}, is {now.get(name)}" for name in differing]
