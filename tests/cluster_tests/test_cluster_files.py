"""What starts a cluster: the scripts' own mistakes, and configuration files held against what reads them."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT, absent

import fgseg

CLUSTER = ROOT / "configs" / "cluster"


def start(script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run scripts/cluster_<script>.sh to its end, the commands of this Python's environment first in the path."""
    own = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"} | environment
    command = [str(ROOT / "scripts" / f"cluster_{script}.sh"), *arguments]
    return subprocess.run(command, env=os.environ | own, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("script", "arguments", "expected"),
    [
        ("head", ["--port", "12000"], "--port: got 12000, must be outside 10002-19999"),
        ("head", ["--port", "many"], "--port: got 'many', must be a number from 1 to 65535"),
        ("head", ["--prot", "1"], "--prot: no such option; see --help"),
        ("head", ["--cpus"], "--cpus: needs a value; see --help"),
        ("worker", [], "--address: got '', must be host:port of the head"),
        ("worker", ["--address", "127.0.0.1:1"], "--address: nothing answers at 127.0.0.1:1"),
    ],
)
def test_mistake_with_a_start_script_is_told_in_one_line(script: str, arguments: list[str], expected: str):
    done = start(script, *arguments)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {expected}")


def test_head_refuses_a_port_that_is_taken():
    with socket.create_server(("127.0.0.1", 0)) as server:
        done = start("head", "--port", str(server.getsockname()[1]))
    assert done.returncode == 2
    assert "listens on" in done.stderr


def test_worker_without_a_token_is_told_to_copy_it(tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        missing = {"RAY_AUTH_TOKEN": "", "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}
        done = start("worker", "--address", address, **missing)
    assert done.returncode == 2
    assert f"{tmp_path / 'token'}: no token in this file; copy the head's" in done.stderr


def test_ray_up_file_passes_the_schema_of_ray():
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(yaml.safe_load((CLUSTER / "ray-up.yaml").read_text()))
    validate_config(config)
    assert config["max_workers"] == len(config["provider"]["worker_ips"]) == 7
    commands = [*config["head_start_ray_commands"][1:], *config["worker_start_ray_commands"][1:]]
    assert all(command.startswith("RAY_AUTH_MODE=token ") for command in commands)


def test_ray_up_file_with_a_field_that_ray_does_not_know_fails_that_check():
    from jsonschema import ValidationError
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load((CLUSTER / "ray-up.yaml").read_text()) | {"max_wrokers": 7}
    with pytest.raises(ValidationError):
        validate_config(prepare_config(config))


FIELDS = {
    "": "apiVersion kind metadata spec",
    "spec": "activeDeadlineSeconds backoffLimit rayClusterSpec submitterPodTemplate metadata clusterSelector "
    "submitterConfig managedBy deletionStrategy entrypoint runtimeEnvYAML jobId submissionMode entrypointResources "
    "entrypointNumCpus entrypointNumGpus ttlSecondsAfterFinished shutdownAfterJobFinishes suspend",
    "rayClusterSpec": "suspend managedBy authOptions autoscalerOptions headServiceAnnotations enableInTreeAutoscaling "
    "gcsFaultToleranceOptions headGroupSpec rayVersion workerGroupSpecs",
    "authOptions": "mode",
    "headGroupSpec": "template headService enableIngress rayStartParams serviceType",
    "workerGroupSpecs": "suspend groupName replicas minReplicas maxReplicas idleTimeoutSeconds rayStartParams template "
    "scaleStrategy numOfHosts",
}
"""The documented fields below each field of a RayJob: KubeRay's API reference (docs/reference/api.md, ray.io/v1), with
authOptions, which KubeRay 1.5.1 has added."""


def unknown_fields(given: dict[str, Any], name: str = "") -> list[str]:
    """The fields of a RayJob, or of the part below one of its fields, that the reference does not name."""
    unknown = [f"{name}.{key}" for key in given if key not in FIELDS[name].split()]
    for key, value in given.items():
        if key in FIELDS:
            parts = value if isinstance(value, list) else [value]
            unknown += [field for part in parts for field in unknown_fields(part, key)]
    return unknown


def kuberay_job() -> dict[str, Any]:
    return yaml.safe_load((CLUSTER / "kuberay-job.yaml").read_text())


def test_kuberay_job_has_only_fields_that_the_reference_names():
    job = kuberay_job()
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert unknown_fields(job) == []
    job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["replica"] = 8
    assert unknown_fields(job) == ["workerGroupSpecs.replica"]


def test_kuberay_job_asks_for_the_tested_ray_with_the_token_and_runs_a_command_that_exists():
    spec = kuberay_job()["spec"]
    assert f"ray=={spec['rayClusterSpec']['rayVersion']}" in (ROOT / "constraints.txt").read_text().splitlines()
    assert spec["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    groups = [spec["rayClusterSpec"]["headGroupSpec"], *spec["rayClusterSpec"]["workerGroupSpecs"]]
    images = {c["image"] for group in groups for c in group["template"]["spec"]["containers"]}
    assert images == {f"registry.example/fgsearch:{fgseg.__version__}"}
    from search.run import parse

    assert parse(spec["entrypoint"].split()[3:]).ray_address == "auto"


def test_dockerfile_passes_its_linter():
    hadolint = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if hadolint is None:
        absent("hadolint is not installed")
    done = subprocess.run([hadolint, str(CLUSTER / "Dockerfile")], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_dockerfile_copies_what_exists():
    lines = (CLUSTER / "Dockerfile").read_text().splitlines()
    sources = [name for line in lines if line.startswith("COPY ") for name in line.split()[1:-1]]
    assert sources
    assert [name for name in sources if not (ROOT / name).exists()] == []
