"""`EpochResult`: the mean over the thin classes, and records of earlier versions."""

import math

from builders import make_epoch

from fgseg.results import EpochResult


def test_thin_miou_is_the_mean_over_the_thin_classes_that_occur():
    iou = {"fence": 0.2, "car": 0.9, "pole": 0.4, "traffic_sign": math.nan}
    result = make_epoch(iou=iou, thin=["fence", "pole", "traffic_sign"])
    assert result.metrics()["val/thin_miou"] == result.thin_miou == (0.2 + 0.4) / 2
    assert EpochResult.from_json(result.to_json()).thin_miou == result.thin_miou


def test_without_thin_classes_there_is_no_thin_miou():
    result = make_epoch(thin=[])
    assert math.isnan(result.thin_miou) and "val/thin_miou" not in result.metrics()


def test_record_of_an_earlier_version_is_read():
    record = make_epoch().to_json()
    del record["thin"], record["boundary_iou"], record["load"]
    assert EpochResult.from_json(record) == make_epoch()


def test_boundary_iou_is_logged_and_read_again():
    result = make_epoch(boundary_iou={"pole": 0.3, "car": math.nan})
    assert {n: v for n, v in result.metrics().items() if n.startswith("val/boundary/")} == {"val/boundary/pole": 0.3}
    again = EpochResult.from_json(result.to_json()).boundary_iou
    assert again["pole"] == 0.3 and math.isnan(again["car"])


def test_load_of_the_node_is_logged_by_the_names_of_mlflows_system_metrics():
    load = {"cpu_utilization_percentage": 61.5, "gpu_0_power_usage_watts": 312.0}
    metrics = EpochResult.from_json(make_epoch(load=load).to_json()).metrics()
    assert {name: value for name, value in metrics.items() if name.startswith("system/")} == {
        "system/cpu_utilization_percentage": 61.5,
        "system/gpu_0_power_usage_watts": 312.0,
    }


def test_compile_time_is_logged_under_its_earlier_name_as_well():
    metrics = make_epoch(compile_s=12.5).metrics()
    assert metrics["train/compile_s"] == metrics["system/compile_s"] == 12.5
    assert not any(name.endswith("compile_s") for name in make_epoch().metrics())
