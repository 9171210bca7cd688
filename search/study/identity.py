"""Comparison of a study's recorded identity with that of a run: what must be the same in every run of a study."""

from collections.abc import Mapping
from typing import Any

from fgseg.config.errors import ConfigError
from fgseg.config.settings import flatten as flatten_settings
from fgseg.config.settings import with_defaults
from search.study.objective import MIOU
from search.study.plan import Plan

LATER: dict[str, Any] = {"objective": MIOU, "constraint": {}}
"""Entries of the identity that studies of earlier versions lack, with the values that those studies had."""


def differences(recorded: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Describe the differences between two identities of a study in one line; empty if there are none.

    Only top-level keys in both are compared, since the data's fingerprint may not be known yet.  A setting that is not
    recorded did not exist yet (see `with_defaults`), or it was searched, which shows as a difference of the space.
    """
    recorded = {**LATER, **recorded} if recorded else recorded
    shared = recorded.keys() & now.keys()
    known = with_defaults(recorded["settings"]) if "settings" in shared else {}
    added = {f"settings.{key}": value for key, value in known.items() if key in now["settings"]}
    before, after = added | flatten_settings(recorded), flatten_settings(now)
    keys = [k for k in sorted(before.keys() | after.keys()) if k.split(".")[0] in shared]
    return "; ".join(
        f"{k}: {before.get(k)!r} there, {after.get(k)!r} now" for k in keys if before.get(k) != after.get(k)
    )


def check_identity(recorded: Mapping[str, Any], now: Mapping[str, Any], plan: Plan) -> None:
    """Raise ConfigError if a study's recorded identity differs from this run's, unless --accept-changes is given.

    The objective cannot be changed: the values of ended trials are those of the old one.
    """
    changes = differences(recorded, now)
    maximised = recorded.get("objective", MIOU)
    if recorded and maximised != now.get("objective", maximised):
        raise ConfigError(
            f"--objective: got {now['objective']}, study {plan.study} maximises {maximised}, which cannot be changed; "
            "choose another --study"
        )
    if changes and not plan.search.accept_changes:
        raise ConfigError(
            f"study {plan.study} was started with other settings, data or version ({changes}); "
            "choose another --study, give the same settings again, or accept the change with --accept-changes"
        )
