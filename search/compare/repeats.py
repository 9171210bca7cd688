"""Read the repeats of a comparison from the ledgers of its families."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from safetensors.numpy import load as load_safetensors

from fgseg.checkpoints.manifest import read_blob
from fgseg.config.settings import with_defaults
from search.compare.scores import Family
from search.ledger.catalog import find_ledger
from search.ledger.ledger import Ledger
from search.ledger.records import State, TrialRecord
from search.study.identity import check_identity
from search.study.plan import UNIDENTIFYING, RepeatPlan


def finished_repeats(plan: RepeatPlan) -> dict[int, TrialRecord]:
    """Return the repeats of a plan with a test result, by seed, trained with the plan's settings.

    Repeats with a changed batch are included only if the plan allows it.
    """
    ledger = find_ledger(plan.location)
    if ledger is None:  # no time was left for the family
        return {}
    return {
        record.seed: record
        for record in repeats_of(plan, ledger)
        if record.state is State.COMPLETE
        and record.test is not None
        and (plan.search.allow_changed_batch or not record.overrides)
        and not other_settings(plan, ledger, record)
    }


def repeats_of(plan: RepeatPlan, ledger: Ledger) -> list[TrialRecord]:
    """Return the trials in a study of repeats whose point and seed are in the plan."""
    wanted = [(repeat.params, repeat.seed) for repeat in plan.repeats]
    return [record for record in ledger.trials() if (record.params, record.repeat) in wanted]


def other_settings(plan: RepeatPlan, ledger: Ledger, record: TrialRecord) -> str:
    """Return the first setting with which a repeat was trained differently than planned, or an empty string."""
    then, now = with_defaults(ledger.metadata.settings_at(record.number)), plan.settings.flat()
    free = {*plan.space.search, *UNIDENTIFYING}
    return next((key for key in now if key not in free and then[key] != now[key]), "")


def missing_seeds(plan: RepeatPlan, finished: Mapping[int, TrialRecord]) -> list[str]:
    """Return one line per seed of a family that is excluded from the comparison, with the reason."""
    ledger = find_ledger(plan.location)
    if ledger is None:
        return [f"{plan.space.title}: no seed was trained, so that the family is left out"]
    records = {record.seed: record for record in repeats_of(plan, ledger)}
    lines = []
    for seed in sorted(set(range(len(plan.repeats))) - finished.keys()):
        record = records.get(seed)
        changed = other_settings(plan, ledger, record) if record else ""
        reason = "has no trial" if record is None else (record.reason or f"is {record.state}")
        if record and record.state is State.COMPLETE:
            reason = f"was trained with another {changed}" if changed else "has another batch size"
        lines.append(f"{plan.space.title}: seed {seed} {reason}, so that this seed is left out of all families")
    if not finished:
        lines.append(
            f"{plan.space.title}: no seed is left, so that the family is left out; "
            f"`python -m search.delete --study {plan.study}` lets it be trained again"
        )
    return lines


def family(plan: RepeatPlan, records: Sequence[TrialRecord]) -> Family:
    """Read the counts of every image and seed of a family."""
    counts = [read_counts(plan, record) for record in records]
    return Family(
        space=plan.space.name,
        title=plan.space.title,
        study=plan.study,
        point=dict(plan.repeats[0].params),
        confusion=np.stack([each["confusion"] for each in counts]),
        boundary=np.stack([each["boundary"] for each in counts]),
        classes=tuple(records[0].test.iou) if records[0].test else (),
        thin=tuple(records[0].test.thin) if records[0].test else (),
    )


def read_counts(plan: RepeatPlan, record: TrialRecord) -> dict[str, Any]:
    """Read the counts per image of a repeat: confusion (N, C, C) int32, boundary (N, C, 2) int32."""
    if record.test is None:
        raise ValueError(f"trial {record.number} has no test result")
    return dict(load_safetensors(read_blob(plan.location.trial_store(record.number), record.test.blob)))


def trials_of(plan: RepeatPlan) -> list[TrialRecord]:
    """Return the trials of a study of repeats, if it exists; raises ConfigError for another identity."""
    ledger = find_ledger(plan.location)
    if ledger is None:
        return []
    check_identity(ledger.metadata.identity, plan.identity, plan)
    return ledger.trials()
