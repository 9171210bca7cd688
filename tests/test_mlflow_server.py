"""The team's tracking server: it starts on loopback, and refuses to be open to others without passwords."""

import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "mlflow" / "serve.sh"


def serve(*arguments: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(SCRIPT), *arguments], capture_output=True, text=True, env=environment, timeout=60
    )


@pytest.fixture
def with_mlflow(environment: dict[str, str]) -> dict[str, str]:
    """The environment with this interpreter's scripts first on the path."""
    return environment | {"PATH": f"{Path(sys.executable).parent}:{environment['PATH']}"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
            return answer.read() == b"OK"
    except (urllib.error.URLError, ConnectionError):
        return False


def test_server_starts_on_loopback_and_keeps_its_files_in_one_folder(with_mlflow: dict[str, str], tmp_path: Path):
    port = free_port()
    command = ["bash", str(SCRIPT), "--folder", str(tmp_path / "server"), "--port", str(port)]
    with subprocess.Popen(
        command, env=with_mlflow, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as server:
        try:
            end = time.monotonic() + 60
            while not healthy(port) and time.monotonic() < end and server.poll() is None:
                time.sleep(0.3)
            assert healthy(port)
        finally:
            server.terminate()
    assert (tmp_path / "server" / "mlflow.db").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["server"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host", "0.0.0.0"], "--host: got 0.0.0.0, an address that others reach needs --auth"),
        (["--host", "0.0.0.0", "--auth"], "MLFLOW_AUTH_CONFIG_PATH: got ''"),
        (["--hots", "x"], "--hots: no such option"),
        (["--port"], "--port: needs a value"),
    ],
)
def test_unsafe_or_wrong_options_are_refused(with_mlflow: dict[str, str], arguments: list[str], message: str):
    done = serve(*arguments, environment=with_mlflow)
    assert done.returncode == 2
    assert message in done.stderr


def test_password_of_the_example_is_refused(with_mlflow: dict[str, str], tmp_path: Path):
    (tmp_path / "auth.ini").write_text("admin_password = password1234\n")
    environment = with_mlflow | {"MLFLOW_AUTH_CONFIG_PATH": str(tmp_path / "auth.ini")}
    done = serve("--host", "0.0.0.0", "--auth", environment=environment)
    assert done.returncode == 2
    assert "choose another" in done.stderr
