"""Convert the searched settings of a study to Optuna's distributions."""

from collections.abc import Mapping
from typing import Any

from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution

from search.ledger.study_metadata import StudyMetadata
from search.study.space import Range, is_whole


def distributions(ranges: Mapping[str, Range]) -> dict[str, BaseDistribution]:
    """Return the distribution of every searched setting by dotted name."""
    return {
        key: IntDistribution(int(r.low), int(r.high), log=r.log)
        if is_whole(key)
        else FloatDistribution(r.low, r.high, log=r.log)
        for key, r in ranges.items()
    }


def recorded_ranges(metadata: StudyMetadata) -> dict[str, Range]:
    """Return the ranges in a study's identity by dotted name; none for repeats, whose points are fixed."""
    recorded: Mapping[str, Any] = metadata.identity.get("space", {}).get("search", {})
    return {key: Range.model_validate(values) for key, values in recorded.items()}
