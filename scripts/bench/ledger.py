"""Measure the ledger alone with many open trials: python -m scripts.bench.ledger [--open 64 1000] [--ended 1000]

One process suggests, reports and ends trials as the driver does, without Ray and MLflow.  `--ledger-url` measures an
empty database on a server instead of an SQLite file.
"""

import argparse
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from fgseg.config.settings import DataConfig
from fgseg.results import EpochResult
from scripts.arguments import positive
from scripts.bench.machine import machine_of_search
from scripts.bench.replay import synthetic_epoch
from search.execution.messages import TrialJob
from search.ledger.ledger import Ledger
from search.ledger.records import TrialAttempt
from search.sampling.distributions import distributions
from search.sampling.study_sampler import StudySampler
from search.study.space import Space, load_space

EPOCHS = 15
SAMPLE = 30
"""Number of trials over which each median is taken."""


def timed(seconds: list[float], call: Callable[..., Any], *arguments: Any) -> Any:
    """Call, append the seconds that it took to `seconds`, and return its result."""
    started = time.perf_counter()
    result = call(*arguments)
    seconds.append(time.perf_counter() - started)
    return result


def fill(ledger: Ledger, source: StudySampler, ended: int) -> None:
    """Add ended trials with all their epochs."""
    ledger.start(source, epochs=EPOCHS, select="last")
    for _ in range(ended):
        attempt = ledger.next_attempt()
        assert attempt is not None
        ledger.report(attempt.number, attempt.attempt, history(attempt, EPOCHS))
        ledger.complete(attempt.number, attempt.attempt)


def make_source(space: Space, sampler: str, trials: int) -> StudySampler:
    """Return the source of the trials of a search."""
    settings = {"pruner": "none", "epochs": EPOCHS, "seed": 1}
    return StudySampler(distributions(space.search), space.start, trials=trials, sampler=sampler, **settings)


def history(attempt: TrialAttempt, count: int) -> list[EpochResult]:
    """Return the first `count` epochs of a trial."""
    job = TrialJob(attempt.number, attempt.attempt, attempt.params, folder="", threads=1, gpus=0, on_oom="fail")
    return [synthetic_epoch(job, number, time.time()) for number in range(1, count + 1)]


def measure(ledger: Ledger, space: Space, opened: int, trials: int) -> str:
    """Start `opened` trials, then end and replace SAMPLE of them; returns the row of the table."""
    suggest_s: list[float] = []
    report_s: list[float] = []
    end_s: list[float] = []
    with ledger.lock():
        ledger.start(make_source(space, "auto", trials), epochs=EPOCHS, select="last")
        started = [attempt for _ in range(opened) if (attempt := ledger.next_attempt())]
        for attempt in started:
            ledger.report(attempt.number, attempt.attempt, history(attempt, EPOCHS - 3))
        for attempt in started[:SAMPLE]:
            for count in (EPOCHS - 2, EPOCHS - 1, EPOCHS):
                timed(report_s, ledger.report, attempt.number, attempt.attempt, history(attempt, count))
            timed(end_s, ledger.complete, attempt.number, attempt.attempt)
            timed(suggest_s, ledger.next_attempt)
    figures = " | ".join(f"{1000 * median(seconds):.1f} ms" for seconds in (suggest_s, report_s, end_s))
    return f"| {opened} | {trials} | {figures} |"


def main(arguments: list[str] | None = None) -> None:
    """Measure with each number of open trials, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--open", type=positive, nargs="+", default=[64, 1000], metavar="N", help="open trials")
    parser.add_argument("--ended", type=positive, default=1000, metavar="N", help="trials that have ended before")
    parser.add_argument("--ledger-url", metavar="URL", help="a database server instead of an SQLite file")
    options = parser.parse_args(arguments)
    print(machine_of_search(), "| open | trials | suggest | epoch | end |\n|---|---|---|---|---|", sep="\n", flush=True)
    space = load_space("slc", DataConfig())
    with tempfile.TemporaryDirectory() as folder:
        url = options.ledger_url or f"sqlite:///{Path(folder, 'study.db')}"
        for opened in options.open:
            ledger = Ledger.create(url, f"bench-{uuid.uuid4().hex}")
            with ledger.lock():
                fill(ledger, make_source(space, "random", options.ended), options.ended)
            print(measure(ledger, space, opened, options.ended + opened + SAMPLE), flush=True)
            with ledger.lock():
                ledger.delete_study()


if __name__ == "__main__":
    main()
