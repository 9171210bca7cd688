"""The identity of a study of an earlier version: settings that it does not record."""

from pathlib import Path
from typing import Any

import pytest

from fgseg.config.settings import VARIANT_NAMES, with_defaults
from fgseg.model.pretrained import VARIANTS
from search.study.identity import differences
from search.study.plan import Plan, make_plan


def plan_for(model: str, **settings: Any) -> Plan:
    return make_plan("bas", "configs/quickstart.yaml", {"model.name": model} | settings, {}, "s")


def earlier(plan: Plan, lacked: str = "model.head") -> dict[str, Any]:
    """The identity as a version without a setting recorded it."""
    settings = {key: value for key, value in plan.identity["settings"].items() if key != lacked}
    return plan.identity | {"settings": settings}


def test_study_of_random_weights_goes_on_as_it_was():
    plan = plan_for("small")
    assert differences(earlier(plan), plan.identity) == ""


def test_study_of_a_checkpoint_began_with_a_new_head_and_does_not_go_on_with_an_inherited_one(tmp_path: Path):
    plan = plan_for(str(tmp_path))
    assert differences(earlier(plan), plan.identity) == "settings.model.head: 'new' there, 'inherit' now"
    again = plan_for(str(tmp_path), **{"model.head": "new"})
    assert differences(earlier(again), again.identity) == ""


def test_study_of_a_version_without_fits_was_stretched_and_goes_on_so():
    plan, padded = plan_for("small"), plan_for("small", **{"data.fit": "pad"})
    assert differences(earlier(plan, "data.fit"), plan.identity) == ""
    expected = "settings.data.fit: 'stretch' there, 'pad' now"
    assert differences(earlier(plan, "data.fit"), padded.identity) == expected


@pytest.mark.parametrize(("name", "head"), [("nvidia/mit-b0", "new"), ("b0", "inherit")])
def test_recorded_settings_without_a_head_mean_a_new_one_for_checkpoints(name: str, head: str):
    assert with_defaults({"model.name": name})["model.head"] == head
    assert with_defaults({"model.name": name, "model.head": "inherit"})["model.head"] == "inherit"


def test_names_that_mean_random_weights_are_the_variants():
    assert tuple(VARIANTS) == VARIANT_NAMES
