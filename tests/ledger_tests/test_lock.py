"""The study's lock, against real processes and against rows that other hosts left."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from sqlalchemy import select, update
from sqlalchemy.exc import OperationalError
from waiting import wait_for

from search.ledger import lock
from search.ledger.ledger import Ledger
from search.ledger.lock import LockedError
from search.ledger.tables import STUDIES

pytestmark = pytest.mark.slow

HOLD = """
import sys, time
from search.ledger.ledger import Ledger
with Ledger(sys.argv[1], "s").lock():
    print("held", flush=True)
    time.sleep(60)
"""

RACE = """
import sys, time
from search.ledger.ledger import Ledger
from search.ledger.lock import LockedError
from search.ledger.tables import STUDIES
time.sleep(max(0, float(sys.argv[2]) - time.time()))
try:
    with Ledger.create(sys.argv[1], "s").lock():
        time.sleep(3)
        print("held")
except LockedError:
    print("refused")
"""


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.server)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of a database of either kind."""
    return request.getfixturevalue("postgres").fresh() if request.param == "postgresql" else in_folder(tmp_path)


def in_folder(folder: Path) -> str:
    return f"sqlite:///{folder}/study.db"


@pytest.fixture
def ledger(url: str) -> Ledger:
    return Ledger.create(url, "s")


@pytest.fixture
def other(ledger: Ledger, url: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the study."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, url], stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def leave_row(ledger: Ledger, **changes: object) -> None:
    """Write a holder's row by hand: a driver on host alpha, 3 seconds after its last heartbeat."""
    row = {"host": "alpha", "pid": 4711, "started": 1e9, "token": "t", "heartbeat": time.time() - 3} | changes
    with ledger._engine.begin() as connection:
        connection.execute(update(STUDIES).values({f"lock_{name}": value for name, value in row.items()}))


def rows(ledger: Ledger) -> list[str]:
    """The tokens in the table."""
    with ledger._engine.connect() as connection:
        return [token for token in connection.execute(select(STUDIES.c.lock_token)).scalars() if token]


def test_a_lock_is_released_at_the_end_even_by_an_error(ledger):
    with pytest.raises(ZeroDivisionError), ledger.lock():
        assert ledger.holder().pid == os.getpid()
        raise ZeroDivisionError
    assert ledger.holder() is None
    with ledger.lock() as held:
        assert held.is_held()
    assert rows(ledger) == []


def test_a_second_process_is_refused_in_one_line(ledger, other):
    with pytest.raises(LockedError) as refusal, ledger.lock():
        pass
    host = socket.gethostname()
    assert str(refusal.value) == (
        f"study s is in use by process {other.pid} on host {host} (last heartbeat 0 s ago); "
        "wait for it, stop it, or choose another --study"
    )


@pytest.mark.slow
def test_of_drivers_that_begin_a_study_at_once_one_holds_it_and_the_others_are_refused(url):
    at = time.time() + 2
    command = [sys.executable, "-c", RACE, url, str(at)]
    drivers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert sorted(driver.communicate()[0] for driver in drivers) == ["held\n", "refused\n", "refused\n"]


def test_two_studies_in_one_database_are_held_apart(url, other):
    with Ledger.create(url, "t").lock() as held:
        assert held.is_held()


@pytest.mark.parametrize("reap", [True, False])
def test_a_killed_holder_on_this_host_is_taken_over_at_once(ledger, other, reap):
    other.send_signal(signal.SIGKILL)
    if reap:
        other.wait()
    else:  # its parent has not asked for its end: a zombie
        wait_for(lambda: psutil.Process(other.pid).status() == psutil.STATUS_ZOMBIE)
    with ledger.lock():
        assert ledger.holder().pid == os.getpid()


def test_a_stopped_holder_on_this_host_still_holds(ledger, other):
    other.send_signal(signal.SIGSTOP)
    set_heartbeat(ledger, time.time() - 1000)
    with pytest.raises(LockedError, match=r"last heartbeat 1000 s ago"), ledger.lock():
        pass
    other.send_signal(signal.SIGCONT)


def test_a_process_number_used_again_is_not_the_holder(ledger):
    leave_row(ledger, host=lock.host_id(), pid=os.getpid(), started=psutil.Process().create_time() - 100)
    with ledger.lock() as held:
        assert held.is_held()


def test_a_process_of_a_container_with_this_hosts_name_is_judged_by_its_heartbeat(ledger):
    name = socket.gethostname()
    leave_row(ledger, host=f"{name}/boot/pid:[1]", pid=2**22 + 1)
    with pytest.raises(LockedError, match=rf"by process 4194305 on host {name} \(last heartbeat 3 s"), ledger.lock():
        pass


def test_a_holder_on_another_host_is_respected_while_its_heart_beats(ledger):
    leave_row(ledger)
    message = r"^study s is in use by process 4711 on host alpha \(last heartbeat 3 s ago\); wait for it, stop it, or"
    with pytest.raises(LockedError, match=message), ledger.lock():
        pass


def test_a_holder_on_another_host_is_taken_over_after_the_stated_time(ledger):
    leave_row(ledger, heartbeat=time.time() - lock.TAKEOVER_S - 1)
    assert ledger.holder() is None
    with ledger.lock():
        assert "t" not in rows(ledger)


def test_a_heartbeat_between_looking_and_taking_over_saves_the_holder(ledger, monkeypatch):
    leave_row(ledger, heartbeat=time.time() - 1000)
    stale = lock.read_row(ledger._engine, ledger._study)
    set_heartbeat(ledger, time.time())
    seen = iter([stale])
    read_row = lock.read_row
    monkeypatch.setattr(lock, "read_row", lambda *args: next(seen, None) or read_row(*args))
    with pytest.raises(LockedError), ledger.lock():
        pass


def test_a_lock_taken_between_looking_and_taking_it_is_respected(ledger, monkeypatch):
    leave_row(ledger)
    looks, read_row = [None], lock.read_row
    monkeypatch.setattr(lock, "read_row", lambda *args: looks.pop() if looks else read_row(*args))
    with pytest.raises(LockedError), ledger.lock():
        pass
    assert rows(ledger) == ["t"]


def test_every_heartbeat_prolongs_the_lock(ledger, monkeypatch):
    monkeypatch.setattr(lock, "HEARTBEAT_S", 0.02)
    with ledger.lock() as held:
        began, stored = held._renewed, ledger.holder().heartbeat
        wait_for(lambda: held._renewed > began)
        assert ledger.holder().heartbeat > stored


def test_the_heartbeat_goes_on_after_a_database_error(ledger, monkeypatch, caplog):
    monkeypatch.setattr(lock, "HEARTBEAT_S", 0.02)
    calls, write = [], lock.StudyLock._renew

    def flaky(self: lock.StudyLock) -> bool:
        calls.append(1)
        if len(calls) <= 2:
            raise OperationalError("UPDATE", {}, Exception("database is locked"))
        return write(self)

    monkeypatch.setattr(lock.StudyLock, "_renew", flaky)
    with ledger.lock() as held:
        began = ledger.holder().heartbeat
        wait_for(lambda: ledger.holder().heartbeat > began)
        assert held.is_held()
    assert "no heartbeat written" in caplog.text


def test_a_lock_whose_heartbeat_cannot_be_written_for_long_is_given_up(ledger, monkeypatch):
    monkeypatch.setattr(lock, "HEARTBEAT_S", 0.02)
    monkeypatch.setattr(lock, "TAKEOVER_S", 0.1)
    fault = OperationalError("UPDATE", {}, Exception("disk full"))
    monkeypatch.setattr(lock.StudyLock, "_renew", lambda *_: (_ for _ in ()).throw(fault))
    with ledger.lock() as held:
        wait_for(lambda: not held.is_held())
        assert not held.is_held()


def test_a_lock_taken_over_by_another_driver_is_no_longer_held_and_stays_theirs(ledger, monkeypatch):
    monkeypatch.setattr(lock, "HEARTBEAT_S", 0.02)
    with ledger.lock() as held:
        with ledger._engine.begin() as connection:
            connection.execute(update(STUDIES).values(lock_token="theirs"))
        wait_for(lambda: not held.is_held())
    assert rows(ledger) == ["theirs"]


def set_heartbeat(ledger: Ledger, at: float) -> None:
    """Change the time of the last heartbeat."""
    with ledger._engine.begin() as connection:
        connection.execute(update(STUDIES).values(lock_heartbeat=at))
