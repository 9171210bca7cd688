"""Child processes: messages, errors, limits, priority, and an end with the parent."""

import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest
from child_targets import answer, describe, echo, fail, leave, sleep
from conftest import ROOT

from search.study.child_process import ChildError, ChildProcess

PARENT = """
import os, sys
sys.path.insert(0, {tests!r})
from search.study.child_process import ChildProcess
from child_targets import answer, sleep
print("the script runs", flush=True)
child = ChildProcess({target}, 20)
print(child.receive(60), flush=True)
{rest}
"""
"""A script without `if __name__ == "__main__"`."""


def start_script(folder: Path, target: str, rest: str = "") -> "subprocess.Popen[str]":
    """Start a script of a user's that starts a child at its top level."""
    script = folder / "script.py"
    script.write_text(PARENT.format(tests=str(ROOT / "tests" / "support"), target=target, rest=rest))
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, script], env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    )


def wait_for_exit(pid: int, limit_s: float = 60) -> None:
    psutil.wait_procs([psutil.Process(pid)] if psutil.pid_exists(pid) else [], timeout=limit_s)
    assert not psutil.pid_exists(pid)


def test_objects_go_both_ways():
    with ChildProcess(echo) as child:
        for message in ({"a": 1}, [Path("b")]):
            child.send(message)
            assert child.receive(60) == message


def test_child_has_its_own_session_the_given_priority_and_environment():
    with ChildProcess(describe, environment={"FGSEARCH_TEST": "set"}, niceness=7) as child:
        assert child.receive(60) == (min(os.nice(0) + 7, 19), True, "set")


def test_arguments_that_cannot_be_pickled_leave_no_process_and_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = multiprocessing.active_children()
    with pytest.raises(Exception, match="pickle") as caught:
        ChildProcess(echo, lambda: None)
    assert caught.traceback  # keeps the object alive, so that only `close` can have ended the child
    assert multiprocessing.active_children() == before
    assert list(tmp_path.glob("fgsearch-*")) == []


@pytest.mark.parametrize(
    ("error", "message"),
    [(ChildError("the ledger is broken"), "the ledger is broken"), (ValueError("two\nlines"), "ValueError: two lines")],
)
def test_exception_of_the_target_arrives_in_one_line(error: Exception, message: str):
    with ChildProcess(fail, error) as child, pytest.raises(ChildError, match=f"^{message}$"):
        child.receive(60)


@pytest.mark.parametrize(("words", "message"), [("first\nlast\n", "last"), ("", "the process ended with exit code 3")])
def test_child_that_exits_early_is_described_by_its_last_line_or_exit_code(words: str, message: str):
    with ChildProcess(leave, words, 3) as child:
        with pytest.raises(ChildError, match=f"^{message}$"):
            child.receive(60)
        assert child.output() == words


def test_message_to_a_child_that_has_exited_is_an_error():
    with ChildProcess(leave, "", 3) as child:
        with pytest.raises(ChildError):
            child.receive(60)
        with pytest.raises(ChildError, match="exit code 3"):
            child.send("late")


def test_wait_ends_at_its_limit_or_when_it_must_stop_and_closing_leaves_no_process():
    with ChildProcess(sleep, 60) as child:
        pid = child.receive(60)
        with pytest.raises(ChildError, match=r"^it took more than 0\.2 s$"):
            child.receive(0.2)
        with pytest.raises(ChildError, match=r"^interrupted$"):
            child.receive(60, lambda: True)
        assert not child.has_message()
    assert not psutil.pid_exists(pid)


def test_system_without_room_for_output_starts_no_process(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tempfile.tempdir", "/nowhere")
    with pytest.raises(ChildError, match=r"^cannot start a process: .*/nowhere"):
        ChildProcess(answer, 1)


def test_script_without_a_guard_is_not_run_again_by_its_child(tmp_path: Path):
    with start_script(tmp_path, "answer", "child.close()") as script:
        assert script.communicate(timeout=60)[0] == "the script runs\n21\n"
    assert script.returncode == 0


def test_child_ends_when_its_parent_is_killed(tmp_path: Path):
    with start_script(tmp_path, "sleep", "import time; time.sleep(60)") as script:
        assert script.stdout is not None
        pid = int([script.stdout.readline() for _ in range(2)][1])
        script.kill()
    wait_for_exit(pid)


def test_child_ends_when_its_parent_exits_without_closing_it(tmp_path: Path):
    with start_script(tmp_path, "sleep") as script:
        pid = int(script.communicate(timeout=60)[0].split()[-1])
    wait_for_exit(pid)
    assert not psutil.pid_exists(pid)


def test_ctrl_c_on_the_terminal_interrupts_the_parent_only(tmp_path: Path):
    wait = "    print('waiting', flush=True)\n    child.receive(60)"
    rest = f"try:\n{wait}\nexcept KeyboardInterrupt: print(os.waitpid(-1, os.WNOHANG)[0], flush=True)"
    with start_script(tmp_path, "sleep", rest) as script:
        assert script.stdout is not None
        _, pid, _ = (script.stdout.readline() for _ in range(3))
        os.killpg(script.pid, signal.SIGINT)
        assert script.stdout.readline() == "0\n"  # the child has not ended
        assert script.wait(30) == 0
    wait_for_exit(int(pid))
