"""What the driver that holds a study remembers of it: the same as the database says, for as long as it holds it."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from builders import make_history
from small_ledger import EPOCHS, drive
from sqlalchemy import event, update
from sqlalchemy.exc import OperationalError

from fgseg.results import SupersededError
from search.ledger.database import study_id
from search.ledger.ledger import Ledger
from search.ledger.lock import StudyLock
from search.ledger.records import State
from search.ledger.study_metadata import StudyMetadata
from search.ledger.tables import STUDIES, TRIALS
from search.ledger.trial_source import FixedTrials
from search.study.plan import Repeat


@pytest.fixture(params=["asha", "none"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Ledger:
    return drive(tmp_path, "auto", request.param, 8, EPOCHS)


def url(ledger: Ledger) -> str:
    """The address of a ledger's database."""
    return ledger._engine.url.render_as_string(hide_password=False)


@contextmanager
def statements(ledger: Ledger) -> Iterator[list[str]]:
    """The statements that a ledger sends to its database meanwhile."""
    sent: list[str] = []

    def note(connection: object, cursor: object, statement: str, *rest: object) -> None:
        sent.append(statement)

    event.listen(ledger._engine, "before_cursor_execute", note)
    yield sent
    event.remove(ledger._engine, "before_cursor_execute", note)


def story(ledger: Ledger) -> Iterator[None]:
    """Everything that a driver can write about trials, stopping after every step."""
    steps: list[Callable[[], object]] = [
        ledger.next_attempt,
        ledger.next_attempt,
        lambda: ledger.report(0, 1, make_history(0.5)),
        lambda: ledger.should_prune(0),
        lambda: ledger.report(1, 1, make_history(0.2)),
        lambda: ledger.should_prune(1),
        lambda: ledger.override(1, 1, {"train.batch_size": 1}),
        lambda: ledger.report(0, 1, make_history(0.5, float("nan"), 0.6)),
        lambda: ledger.complete(0, 1),
        lambda: ledger.process_died(1, 1, "it died", max_failures=3),
        ledger.next_attempt,
        lambda: ledger.prune(1, 2),
        ledger.next_attempt,
        lambda: ledger.fail(2, 1, "broken"),
        ledger.next_attempt,
    ]
    for step in steps:
        step()
        yield


@pytest.fixture
def far_east(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A time zone in which local time is not the database's."""
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.slow
def test_memory_says_after_every_write_what_the_database_says(ledger, far_east):
    with ledger.lock():
        for _ in story(ledger):
            fresh = Ledger(url(ledger), "s")
            assert str(ledger.trials()) == str(fresh.trials())


def test_moments_are_the_same_in_every_time_zone(ledger, far_east, monkeypatch):
    with ledger.lock():
        list(story(ledger))
        written = [(t.started, t.ended) for t in ledger.trials()]
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    assert [(t.started, t.ended) for t in Ledger(url(ledger), "s").trials()] == written


def test_looking_at_a_study_that_is_held_asks_the_database_nothing(ledger):
    with ledger.lock():
        ledger.trials()
        for _ in story(ledger):
            with statements(ledger) as sent:
                ledger.trials()
                _ = ledger.metadata
                ledger.open_trials()
            assert sent == []


def test_what_a_reader_was_given_does_not_change_under_its_hands(ledger):
    with ledger.lock():
        ledger.next_attempt()
        seen = ledger.trial(0)
        before = str(seen)
        ledger.report(0, 1, make_history(0.5))
        assert str(seen) == before


def test_without_the_lock_every_look_sees_what_others_wrote(ledger):
    ledger.next_attempt()
    other = Ledger(url(ledger), "s")
    for held in (False, True, False):
        count = len(ledger.trials())
        if held:
            with ledger.lock():
                assert len(ledger.trials()) == count
        other.start(FixedTrials([Repeat({}, count)]), epochs=1, select="last")
        other._attempted = set(range(count))
        other.next_attempt()
        assert len(ledger.trials()) == count + 1


def test_a_driver_that_lost_the_study_sees_it_at_once(ledger, monkeypatch):
    with ledger.lock() as lock:
        ledger.next_attempt()
        ledger.trials()
        other = Ledger(url(ledger), "s")
        monkeypatch.setattr(StudyLock, "is_held", lambda self: False)
        assert lock.is_held() is False
        other.fail(0, 1, "ended by another driver")
        assert ledger.trial(0).state is State.FAIL


def test_a_write_between_the_last_look_and_the_lock_is_seen(ledger):
    ledger.next_attempt()
    ledger.trials()
    Ledger(url(ledger), "s").fail(0, 1, "ended by another driver")
    with ledger.lock():
        assert ledger.trial(0).state is State.FAIL


def test_a_write_of_another_process_is_seen_after_the_next_own_one(ledger):
    with ledger.lock():
        ledger.next_attempt()
        Ledger(url(ledger), "s").fail(0, 1, "ended by another driver")
        ledger.next_attempt()
        assert [t.state for t in ledger.trials()] == [State.FAIL, State.RUNNING]


def test_description_written_under_the_lock_is_read_again(ledger):
    with ledger.lock():
        ledger.trials()
        ledger.record_run(StudyMetadata(title="BAS", budget=8))
        assert ledger.metadata.title == "BAS"


def test_study_that_another_driver_has_taken_is_not_deleted(ledger):
    with ledger.lock():
        with ledger._engine.begin() as connection:
            connection.execute(update(STUDIES).values(lock_token="theirs"))
        with pytest.raises(SupersededError, match="another driver"):
            ledger.delete_study()
    assert study_id(url(ledger), "s") is not None


def test_deleting_a_study_begins_with_the_write_that_names_the_lock(ledger):
    """On SQLite, a read does not keep another driver from taking the lock before the first row is deleted."""
    with ledger.lock(), statements(ledger) as sent:
        ledger.delete_study()
    first = next(statement for statement in sent if not statement.startswith("SELECT"))
    assert first.startswith("UPDATE fgsearch_studies SET seq") and "lock_token" in first
    assert study_id(url(ledger), "s") is None


def lose_answer(monkeypatch: pytest.MonkeyPatch, owner: object, name: str) -> None:
    """Let one write reach the database and its answer be lost, as when a server's connection breaks."""
    write = getattr(owner, name)

    def broken(*args: object) -> None:
        write(*args)
        monkeypatch.setattr(owner, name, write)
        raise OperationalError("COMMIT", {}, Exception("server closed the connection"))

    monkeypatch.setattr(owner, name, broken)
    monkeypatch.setattr("fgseg.storage.retry.sleep", lambda pause_s: None)


def test_a_write_whose_answer_is_lost_is_found_when_it_is_repeated(ledger, monkeypatch):
    with ledger.lock():
        lose_answer(monkeypatch, ledger._engine.dialect, "do_commit")
        asked = [ledger.next_attempt() for _ in range(3)]
        assert [(ask.number, ask.attempt) for ask in asked] == [(0, 2), (1, 1), (2, 1)]
        ledger.report(0, 2, make_history(0.5, 0.5, 0.6))
        lose_answer(monkeypatch, ledger._engine.dialect, "do_commit")
        ledger.complete(0, 2)
        assert [t.state for t in ledger.trials()] == [State.COMPLETE, State.RUNNING, State.RUNNING]
        assert str(ledger.trials()) == str(Ledger(url(ledger), "s").trials())


def test_a_trial_that_somebody_else_has_ended_is_not_written_to(ledger):
    with ledger.lock():
        ledger.next_attempt()
        ledger.trials()
        with ledger._engine.begin() as connection:
            connection.execute(update(TRIALS).values(state="fail"))
        with pytest.raises(SupersededError):
            ledger.report(0, 1, make_history(0.1))


@pytest.mark.parametrize(
    "write",
    [
        lambda ledger: ledger.report(0, 1, make_history(0.1)),
        lambda ledger: ledger.fail(0, 1, "broken"),
        lambda ledger: ledger.next_attempt(),
    ],
)
def test_a_driver_that_slept_while_another_took_the_study_writes_nothing(ledger, write):
    with ledger.lock() as lock:
        ledger.next_attempt()
        with ledger._engine.begin() as connection:
            connection.execute(update(STUDIES).values(lock_token="theirs"))
        before = str(Ledger(url(ledger), "s").trials())
        assert lock.is_held()  # its next heartbeat will tell
        with pytest.raises(SupersededError, match="another driver has taken the study over"):
            write(ledger)
        assert not lock.is_held()
        assert str(Ledger(url(ledger), "s").trials()) == before
