"""The study to hold others against: that of the baseline family, under the same config and on the same frames."""

from dataclasses import dataclass, replace

from search.ledger.catalog import exists, open_ledger
from search.study.location import Place
from search.study.plan import UNIDENTIFYING
from search.summary import Summary, summarise

FAMILY = "baseline"


@dataclass(frozen=True)
class Baseline:
    """The baseline's study, or why there is none to compare with; both are empty for a baseline itself."""

    summary: Summary | None = None
    reason: str = ""


def find_baseline(place: Place, summary: Summary) -> Baseline:
    """Look for the study `<config>-baseline` in the storage of another one."""
    if summary.space == FAMILY:
        return Baseline()
    name = f"{summary.experiment}-{FAMILY}"
    other = replace(place, study=name)
    if not exists(other):
        return Baseline(reason=f"There is no study {name} in this storage to compare with.")
    found = summarise(open_ledger(other))
    if found.data != summary.data:
        return Baseline(reason=f"Study {name} was made on other frames, so it is not compared.")
    if other_recipe := differing(found, summary):
        return Baseline(reason=f"Study {name} has another {other_recipe}, so it is not compared.")
    return Baseline(found) if found.best else Baseline(reason=f"Study {name} has no finished trial yet.")


def differing(one: Summary, other: Summary) -> str:
    """The first setting of model or training in which two studies differ, but for those that either searches."""
    free = {*one.ranges, *other.ranges, *UNIDENTIFYING}
    keys = [k for k in one.settings if k.split(".")[0] in ("model", "train", "augment") and k not in free]
    return next((key for key in keys if one.settings[key] != other.settings.get(key)), "")
