"""The team's tracking server: it starts on loopback, and refuses to be open to others without passwords."""

import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "mlflow" / "serve.sh"


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


def answers(port: int, path: str = "health", headers: dict[str, str] | None = None) -> int:
    """The status of an answer, 0 where there is none; with headers the request is a POST."""
    url, body = f"http://127.0.0.1:{port}/{path}", b"{}" if headers else None
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"} | (headers or {}))
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


@contextmanager
def started(folder: Path, environment: dict[str, str], *options: str) -> Iterator[int]:
    """The port of a server that answers, with its files in `folder`/server."""
    port = free_port()
    command = ["bash", str(SCRIPT), "--folder", str(folder / "server"), "--port", str(port), *options]
    command = [argument.replace("PORT", str(port)) for argument in command]
    with subprocess.Popen(
        command, env=environment, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as server:
        try:
            end = time.monotonic() + 60
            while answers(port) != 200 and time.monotonic() < end and server.poll() is None:
                time.sleep(0.3)
            assert answers(port) == 200
            yield port
        finally:
            server.terminate()


@pytest.mark.server
def test_server_keeps_its_files_in_one_folder_and_answers_only_to_its_names(
    with_mlflow: dict[str, str], tmp_path: Path
):
    with started(tmp_path, with_mlflow, "--name", "tracking.example:PORT") as port:
        named, other = f"tracking.example:{port}", f"elsewhere.example:{port}"
        search = "api/2.0/mlflow/experiments/search"
        # 400 is MLflow's own answer to a search that asks for nothing; 403 is the guard before it.
        assert answers(port, search, {"Host": named, "Origin": f"http://{named}"}) == 400
        assert answers(port, search, {"Host": f"localhost:{port}"}) == 400
        assert answers(port, search, {"Host": other}) == 403
        assert answers(port, search, {"Host": named, "Origin": f"http://{other}"}) == 403
    assert (tmp_path / "server" / "mlflow.db").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["server"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host", "0.0.0.0"], "--host: got 0.0.0.0, an address that others reach needs --auth"),
        (["--host", "0.0.0.0", "--auth"], "by --name NAME:5000"),
        (["--name", "http://tracking.example"], "--name: got 'http://tracking.example'"),
        (["--host", "10.0.0.5", "--auth"], "MLFLOW_AUTH_CONFIG_PATH: got ''"),
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
    done = serve("--host", "10.0.0.5", "--auth", environment=environment)
    assert done.returncode == 2
    assert "choose another" in done.stderr
