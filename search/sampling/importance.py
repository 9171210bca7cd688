"""Importance of the searched settings for the value of a trial: fANOVA on a random forest over the finished trials."""

import warnings
from collections.abc import Mapping, Sequence

from search.ledger.records import TrialRecord
from search.study.space import Range

MIN_TRIALS = 8
"""Number of finished trials below which no importance is computed."""
RELIABLE_TRIALS = 30
"""Number of finished trials below which `caution` warns that the order may still change."""


def importance(trials: Sequence[TrialRecord], ranges: Mapping[str, Range]) -> dict[str, float]:
    """Compute the share of the values' variance that each setting explains, largest first; the shares sum to 1.

    Args:
        trials: finished trials, in any order.
        ranges: the searched settings.

    Returns:
        Empty if fewer than two settings are searched, fewer than MIN_TRIALS trials lie within the ranges, or all of
        these trials have the same value.

    Source: Hutter, Hoos and Leyton-Brown 2014, as Optuna computes it, over the trials' own ranges.
    """
    usable = [t for t in trials if t.value is not None and within(t.params, ranges)]
    if len(usable) < MIN_TRIALS or len(ranges) < 2 or len({t.value for t in usable}) == 1:
        return {}
    import optuna
    from optuna.distributions import FloatDistribution

    distributions = {key: FloatDistribution(r.low, r.high, log=r.log) for key, r in ranges.items()}
    study = optuna.create_study(direction="maximize")
    for t in sorted(usable, key=lambda t: t.number):
        params = {key: float(r.position(t.params[key])) for key, r in ranges.items()}
        study.add_trial(optuna.create_trial(params=params, distributions=distributions, value=t.value))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        shares = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {key: float(share) for key, share in shares.items()}


def within(params: Mapping[str, float], ranges: Mapping[str, Range]) -> bool:
    """Return whether params lie in every range; false e.g. for a trial from before a range was narrowed."""
    return all(key in params and r.contains(params[key]) for key, r in ranges.items())


def caution(trials: Sequence[TrialRecord], ranges: Mapping[str, Range]) -> str:
    """Describe in a sentence how reliable the shares are, or why there are none."""
    count = sum(t.value is not None and within(t.params, ranges) for t in trials)
    if len(ranges) < 2:
        return "Fewer than two settings are searched, so no importance can be computed."
    if count < MIN_TRIALS:
        return f"{count} finished trials are too few to compute importances; at least {MIN_TRIALS} are needed."
    hint = f"; from {count} trials the order may still change" if count < RELIABLE_TRIALS else ""
    return f"Share of the variance that a setting explains (fANOVA){hint}."
