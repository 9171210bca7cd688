"""NVIDIA MPS for trials that share a GPU: kernels of several processes run at the same time instead of in turns."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from search.study.config import SearchConfig
from search.study.resources import MPS_PIPES, MPS_PROGRAM, starts_mps

START_S = 10.0
"""Seconds that the daemon may take to answer; later the trials run without it."""
STOP_S = 5.0
"""Seconds that the daemon may take to exit; later it is killed."""
CHECK = "import torch; torch.cuda.mem_get_info()"
"""Code of a process that uses a GPU as a trial does."""
CHECK_S = 60.0
"""Seconds that this process may take, most of which it imports torch; later the trials run without the daemon."""
POLL_S = 0.1
"""Seconds between two requests while the daemon starts."""


@contextmanager
def mps_daemon(search: SearchConfig) -> Iterator[dict[str, str]]:
    """Run an MPS daemon of this user if `starts_mps`, with pipes and logs in a temporary folder of its own.

    At the end the daemon is ended by its process id.  Only if this process is killed does it go on running, idle.  If
    it does not answer, or a process cannot use a GPU under it, a warning is printed and trials take turns on the GPU.

    Yields:
        Variables by which the processes of trials find the daemon; empty if none was started.
    """
    if not starts_mps(search):
        yield {}
        return
    # Where Ray's files are as well: Linux limits the path of a socket to 107 characters.
    with TemporaryDirectory(prefix="fg-mps-", dir=os.environ.get("RAY_TMPDIR"), ignore_cleanup_errors=True) as folder:
        pipes, logs = Path(folder, "pipe"), Path(folder, "log")
        pipes.mkdir()
        logs.mkdir()
        # All GPUs: a daemon with CUDA_VISIBLE_DEVICES would number them anew for the trials.
        environment = {key: value for key, value in os.environ.items() if key != "CUDA_VISIBLE_DEVICES"}
        environment |= {MPS_PIPES: str(pipes), "CUDA_MPS_LOG_DIRECTORY": str(logs)}
        daemon = start_daemon(environment)
        try:
            variables = {MPS_PIPES: str(pipes)}
            trouble = find_trouble(daemon, environment, variables)
            if trouble:
                print(f"warning: NVIDIA MPS is not used, trials take turns on a GPU: {trouble}", file=sys.stderr)
                stop_daemon(daemon, environment)
            yield {} if trouble else variables
        finally:
            stop_daemon(daemon, environment)


def start_daemon(environment: dict[str, str]) -> "subprocess.Popen[bytes]":
    """Start the daemon in the foreground, so that its process id is known, and apart from Ctrl-C on the terminal."""
    return subprocess.Popen(
        [MPS_PROGRAM, "-f"],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def find_trouble(daemon: "subprocess.Popen[bytes]", environment: dict[str, str], variables: dict[str, str]) -> str:
    """Return why trials with these variables cannot use the daemon; "" if they can.

    The control program answers without the server, which starts with the first process that uses a GPU.
    """
    if not wait_for_answer(daemon, environment):
        return f"{MPS_PROGRAM} does not answer"
    process = [sys.executable, "-c", CHECK]
    try:
        done = subprocess.run(process, env=os.environ | variables, capture_output=True, text=True, timeout=CHECK_S)
    except subprocess.TimeoutExpired:
        return f"a process could not use a GPU within {CHECK_S:g} s"
    last = "".join(done.stderr.strip().splitlines()[-1:])
    return f"a process cannot use a GPU ({last})" if done.returncode else ""


def wait_for_answer(daemon: "subprocess.Popen[bytes]", environment: dict[str, str]) -> bool:
    """Return whether the daemon answers before it exits and within `START_S`."""
    end = time.monotonic() + START_S
    while daemon.poll() is None and time.monotonic() < end:
        if command("get_server_list", environment):
            return True
        time.sleep(POLL_S)
    return False


def stop_daemon(daemon: "subprocess.Popen[bytes]", environment: dict[str, str]) -> None:
    """Let the daemon end its server and itself, then terminate or kill its process if it still runs."""
    if daemon.poll() is None:
        command("quit -t 1", environment)  # seconds for a server with clients, of which none is left
    for end in (lambda: None, daemon.terminate, daemon.kill):
        end()
        try:
            daemon.wait(STOP_S)
            return
        except subprocess.TimeoutExpired:
            continue


def command(text: str, environment: dict[str, str]) -> bool:
    """Send a command to the daemon of an environment; returns whether the daemon answered."""
    try:
        done = subprocess.run(
            [MPS_PROGRAM], input=f"{text}\n", text=True, env=environment, capture_output=True, timeout=STOP_S
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0
