"""The private Ray of a run: nobody else can reach it."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.ray

LISTENING = """
import os, psutil
from search.cluster.ray_cluster import cluster, ray_environment
from search.study.config import SearchConfig
os.environ.update(ray_environment())
with cluster(SearchConfig(), "", lambda: None):
    import ray
    print("niceness", ray.get(ray.remote(lambda: os.nice(0)).remote()) - os.nice(0))
    for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
        for connection in process.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN:
                print("listens", connection.laddr.ip)
print("variable", os.environ.get("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"))
"""


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
