"""A virtual clock: simulated processes whose threads are greenlets, so that one seed gives one order of events.

A thread runs until it sleeps or waits; then the earliest event is next, and the clock jumps to its time.
"""

import heapq
import itertools
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from types import SimpleNamespace
from typing import Any

from greenlet import greenlet


class Killed(BaseException):
    """Raised in every thread of a killed process by the next call that would wait or write."""


class Process:
    """A simulated process of the operating system.

    Attributes:
        writes_left: durable writes until the process crashes; None: it does not crash.
        torn: whether this crash leaves the write half done, if a half exists.
        stall_s: seconds for which the process freezes before its next transaction.
        on_death: called once when the process ends.
    """

    def __init__(self, clock: "Clock", host: str) -> None:
        self.clock, self.host = clock, host
        self.pid, self.started = next(clock.numbers), clock.now
        self.alive, self.frozen_until = True, 0.0
        self.writes_left: int | None = None
        self.torn = False
        self.stall_s = 0.0
        self.on_death: Callable[[], None] = lambda: None
        self.threads: list[Thread] = []
        clock.processes.append(self)

    def kill(self) -> None:
        """End the process: its threads raise Killed, the caller's own at its next wait or write."""
        if self.alive:
            self.alive = False
            self.on_death()
        for thread in self.threads:
            self.clock.wake(thread)

    def crashes_now(self) -> bool:
        """Count a durable write; returns whether the process crashes at this one."""
        if self.writes_left is None:
            return False
        self.writes_left -= 1
        return self.writes_left < 0


class Clock:
    """Virtual time in Unix seconds, and the queue of everything that will happen."""

    def __init__(self, start: float) -> None:
        self.now = start
        self.numbers = itertools.count(1)
        self.queue: list[tuple[float, int, Any, int]] = []
        self.processes: list[Process] = []
        self.until = start
        self.hub = greenlet.getcurrent()

    @property
    def thread(self) -> "Thread":
        """The thread that runs."""
        current = greenlet.getcurrent()
        assert isinstance(current, Thread)
        return current

    @property
    def process(self) -> Process:
        """The process that runs; raises Killed if it is dead."""
        process = self.thread.process
        if not process.alive:
            raise Killed
        return process

    def time(self) -> float:
        """Return the virtual time, in place of every clock of the product."""
        return self.now

    def call_at(self, when: float, action: Callable[[], None]) -> None:
        """Run an action, which must not wait, at a time."""
        heapq.heappush(self.queue, (when, next(self.numbers), action, 0))

    def wake(self, thread: "Thread", delay_s: float = 0.0) -> None:
        """Continue a waiting thread after some seconds."""
        heapq.heappush(self.queue, (self.now + delay_s, next(self.numbers), thread, thread.waits))

    def sleep(self, seconds: float) -> None:
        """Let the running thread wait; the clock jumps where nothing else happens meanwhile."""
        thread, process, end = self.thread, self.process, self.now + seconds
        thread.waits += 1
        if end <= self.until and process.frozen_until <= end and (not self.queue or self.queue[0][0] > end):
            self.now = end
        else:
            self.wake(thread, seconds)
            self.suspend()

    def suspend(self) -> None:
        """Run other threads until the running one is continued; raises Killed if its process has died."""
        self.hub.switch()
        _ = self.process

    def end(self) -> None:
        """Kill all processes; nothing else happens any more."""
        self.queue.clear()
        for process in self.processes:
            process.kill()
        self.run(float("inf"))

    def run(self, until: float, is_over: Callable[[], bool] = lambda: False) -> None:
        """Run everything that happens up to a time, or until nothing is left, or until a condition holds."""
        self.until = until
        while self.queue and self.queue[0][0] <= until and not is_over():
            when, _, item, waits = heapq.heappop(self.queue)
            self.now = max(self.now, when)
            if not isinstance(item, Thread):
                item()
            elif waits == item.waits and not item.dead:
                if item.process.alive and item.process.frozen_until > self.now:
                    self.wake(item, item.process.frozen_until - self.now)
                else:
                    item.waits += 1
                    item.switch()


class Thread(greenlet):
    """A thread of a process, in place of `threading.Thread`; without a process of its own it joins the caller's."""

    def __init__(
        self,
        target: Callable[..., Any],
        args: tuple[Any, ...] = (),
        name: str = "",
        daemon: bool = True,
        *,
        process: Process | None = None,
        clock: Clock,
    ) -> None:
        super().__init__(self._run, parent=clock.hub)
        self.clock, self.target, self.arguments = clock, target, args
        self.process = process or clock.process
        self.ended = Event(clock=clock)
        self.waits, self.error = 0, None

    def start(self) -> None:
        """Start the thread; returns at once."""
        self.process.threads.append(self)
        self.clock.wake(self)

    def is_alive(self) -> bool:
        """Return whether the thread was started and has not ended."""
        return self in self.process.threads

    def join(self, timeout: float | None = None) -> None:
        """Wait for the end of the thread."""
        self.ended.wait(timeout)

    def _run(self) -> None:
        try:
            with suppress(Killed):  # the end of a killed process's thread
                if self.process.alive:
                    self.target(*self.arguments)
        finally:
            self.process.threads.remove(self)
            self.ended.set()


class Condition:
    """In place of `threading.Condition`; threads change only where they wait, so that its lock is not needed."""

    def __init__(self, *, clock: Clock) -> None:
        self.clock = clock
        self.waiting: list[Thread] = []

    def __enter__(self) -> "Condition":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def notify(self) -> None:
        """Continue all waiting threads."""
        for thread in self.waiting:
            self.clock.wake(thread)
        self.waiting = []

    def wait(self, timeout: float | None = None) -> None:
        """Wait for `notify`."""
        thread = self.clock.thread
        _ = self.clock.process
        thread.waits += 1
        self.waiting.append(thread)
        if timeout is not None:
            self.clock.wake(thread, max(0.0, timeout))
        try:
            self.clock.suspend()
        finally:
            if thread in self.waiting:
                self.waiting.remove(thread)

    def wait_for(self, predicate: Callable[[], Any], timeout: float | None = None) -> bool:
        """Wait until a predicate is true."""
        end = float("inf") if timeout is None else self.clock.now + timeout
        while not predicate() and self.clock.now < end:
            self.wait(None if timeout is None else end - self.clock.now)
        return bool(predicate())


class Event(Condition):
    """In place of `threading.Event`."""

    flag = False

    def is_set(self) -> bool:
        """Return whether `set` was called."""
        return self.flag

    def clear(self) -> None:
        """Take the flag back."""
        self.flag = False

    def set(self) -> None:
        """Set the flag and continue all waiting threads."""
        self.flag = True
        self.notify()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the flag; returns it."""
        end = float("inf") if timeout is None else self.clock.now + timeout
        while not self.flag and self.clock.now < end:
            super().wait(None if timeout is None else end - self.clock.now)
        return self.flag


class Lock(Condition):
    """In place of `threading.Lock`."""

    held = False

    def __enter__(self) -> "Lock":
        while self.held:
            self.wait()
        self.held = True
        return self

    def __exit__(self, *error: object) -> None:
        self.held = False
        self.notify()


def threading_for(clock: Clock) -> Any:
    """Return what the product uses of the module `threading`."""
    return SimpleNamespace(**{kind.__name__: partial(kind, clock=clock) for kind in (Thread, Condition, Event, Lock)})
