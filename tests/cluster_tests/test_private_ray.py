"""The private Ray of a run: nobody else can reach it."""

import gc
import os
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray import JobID

from fgseg.config.errors import FaultError
from search.cluster import ray_cluster
from search.study.config import SearchConfig

LISTENING = """
import os, psutil
from search.cluster.ray_cluster import cluster, set_ray_environment
from search.study.config import SearchConfig
set_ray_environment()
with cluster(SearchConfig(), "", lambda: None):
    import ray
    print("niceness", ray.get(ray.remote(lambda: os.nice(0)).remote()) - os.nice(0))
    for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
        for connection in process.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN:
                print("listens", connection.laddr.ip)
print("variable", os.environ.get("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"))
"""


@pytest.mark.ray
def test_private_ray_has_workers_of_normal_priority_and_listens_on_loopback_with_a_token_of_its_own(
    environment: dict[str, str], tmp_path: Path
):
    own = {key: value for key, value in environment.items() if not key.startswith("RAY_AUTH")} | {"HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", LISTENING], env=own, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    niceness, *addresses, variable = done.stdout.splitlines()
    assert niceness == "niceness 0"
    assert set(addresses) <= {"listens 127.0.0.1", "listens ::ffff:127.0.0.1", "listens ::1"}
    assert len(addresses) > 3
    assert variable == "variable None"
    assert (tmp_path / ".ray" / "auth_token").stat().st_mode & 0o777 == 0o600
    # The token exists now; a caller of the Python API may have imported Ray before.
    subprocess.run([sys.executable, "-c", f"import ray{LISTENING}"], env=own, cwd=tmp_path, check=True)


def test_ray_that_does_not_start_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch):
    def init(**options: Any) -> None:
        raise Exception("The current node timed out during startup.\nThis could happen because ...")

    monkeypatch.setattr("ray.init", init)
    with pytest.raises(FaultError, match=r"^Ray did not start on this machine \(The current node timed [^\n]*; run"):
        ray_cluster.start(SearchConfig(), {})
    with pytest.raises(Exception, match="could happen"):  # who joins a cluster sees all of Ray's message
        ray_cluster.start(SearchConfig(ray_address="10.0.0.1:6379"), {})


def test_ray_prints_errors_of_the_cluster_unless_they_are_hidden(monkeypatch: pytest.MonkeyPatch, capsys):
    """Fails where Ray no longer does so: then `hide_errors_of_ray_2` is not needed any more, or not enough."""
    from ray._private import worker

    stopped = threading.Event()

    def poll() -> tuple[None, dict[str, Any]]:
        stopped.set()
        return None, {"job_id": None, "error_message": "the last lines of a dead node"}

    driver: Any = SimpleNamespace(current_job_id=JobID.nil(), gcs_error_subscriber=SimpleNamespace(poll=poll))
    driver.gcs_error_subscriber.subscribe = lambda: None
    monkeypatch.setattr(worker, "_worker_logs_enabled", True)
    worker.listen_error_messages(driver, stopped)
    assert "the last lines of a dead node" in capsys.readouterr().out
    stopped.clear()
    ray_cluster.hide_errors_of_ray_2()
    worker.listen_error_messages(driver, stopped)
    assert capsys.readouterr().out == ""


def test_ray_listens_on_the_network_unless_it_is_told_not_to(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Fails where Ray no longer does so, or is told otherwise: then `loopback_of_ray_2` is not needed any more."""
    from ray._private import ray_constants

    monkeypatch.setenv("HOME", str(tmp_path))
    assert ray_constants.ENABLE_RAY_CLUSTER
    with ray_cluster.loopback_of_ray_2():
        assert not ray_constants.ENABLE_RAY_CLUSTER
        assert os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] == "0"
    assert ray_constants.ENABLE_RAY_CLUSTER
    assert (tmp_path / ".ray" / "auth_token").stat().st_mode & 0o777 == 0o600


def test_nothing_is_garbage_collected_while_ray_shuts_down(monkeypatch: pytest.MonkeyPatch):
    class Trial:
        def __init__(self) -> None:
            self.cycle = self  # freed by the garbage collector only

    trial, seen = Trial(), []
    alive = weakref.ref(trial)
    monkeypatch.setattr("ray.get_runtime_context", lambda: SimpleNamespace(gcs_address="127.0.0.1:1"))
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 2.0})
    monkeypatch.setattr("ray.shutdown", lambda: seen.append((gc.isenabled(), alive())))
    monkeypatch.setattr(ray_cluster, "start", lambda search, variables: None)
    with ray_cluster.cluster(SearchConfig(), "", lambda: None):
        del trial
    assert seen == [(False, None)]
    assert gc.isenabled()
