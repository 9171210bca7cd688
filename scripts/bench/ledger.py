"""What the ledger alone takes with many trials open: python -m scripts.bench.ledger [--open 64 1000] [--ended 1000]

One process asks, reports and ends trials as the driver does; Ray and MLflow do not run.  `--ledger-url` measures an
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

from optuna.samplers import RandomSampler
from optuna.trial import create_trial

from fgseg.results import EpochResult
from scripts.bench.orchestration import machine
from scripts.bench.replay import made_up_epoch
from search.execution.messages import TrialJob
from search.ledger.ledger import Ledger
from search.ledger.records import TrialAttempt
from search.study.space import Space, load_space

EPOCHS = 15
SAMPLE = 30
"""Trials over which a figure is taken."""


def timed(seconds: list[float], call: Callable[..., Any], *arguments: Any) -> Any:
    """Call, and note how long it took."""
    started = time.perf_counter()
    result = call(*arguments)
    seconds.append(time.perf_counter() - started)
    return result


def fill(ledger: Ledger, space: Space, ended: int) -> None:
    """Add trials that have ended, with all their epochs."""
    sampler, drawn = RandomSampler(seed=1), space.distributions()
    for number in range(ended):
        params = {name: sampler.sample_independent(ledger._study, None, name, d) for name, d in drawn.items()}
        epochs = history(TrialAttempt(number, 1, params), EPOCHS)
        facts = {f"epoch/{e.epoch}": e.to_json() for e in epochs} | {"attempt": 1, "length": EPOCHS, "selected": EPOCHS}
        values = {e.epoch: e.miou for e in epochs}
        ledger._study.add_trial(
            create_trial(
                params=params, distributions=drawn, value=epochs[-1].miou, user_attrs=facts, intermediate_values=values
            )
        )


def history(ask: TrialAttempt, count: int) -> list[EpochResult]:
    """The first epochs of a trial."""
    job = TrialJob(ask.number, ask.attempt, ask.params, folder="", threads=1, gpus=0, on_oom="fail")
    return [made_up_epoch(job, number, time.time()) for number in range(1, count + 1)]


def measure(ledger: Ledger, space: Space, opened: int, trials: int) -> str:
    """Ask for so many trials, then end and replace some of them; returns the row of the table."""
    ask_s: list[float] = []
    report_s: list[float] = []
    end_s: list[float] = []
    with ledger.lock():
        ledger.start(
            space.distributions(), space.start, trials=trials, sampler="auto", pruner="none", epochs=EPOCHS, seed=1,
            select="last",
        )  # fmt: skip
        asks = [ledger.next_attempt() for _ in range(opened)]
        for ask in asks:
            ledger.report(ask.number, ask.attempt, history(ask, EPOCHS - 3))
        for ask in asks[:SAMPLE]:
            for count in (EPOCHS - 2, EPOCHS - 1, EPOCHS):
                timed(report_s, ledger.report, ask.number, ask.attempt, history(ask, count))
            timed(end_s, ledger.complete, ask.number, ask.attempt)
            timed(ask_s, ledger.next_attempt)
    figures = " | ".join(f"{1000 * median(seconds):.1f} ms" for seconds in (ask_s, report_s, end_s))
    return f"| {opened} | {trials} | {figures} |"


def main(arguments: list[str] | None = None) -> None:
    """Measure with few and with many trials open, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--open", type=int, nargs="+", default=[64, 1000], metavar="N", help="open trials")
    parser.add_argument("--ended", type=int, default=1000, metavar="N", help="trials that have ended before")
    parser.add_argument("--ledger-url", metavar="URL", help="a database server instead of an SQLite file")
    options = parser.parse_args(arguments)
    print(machine(), "| open | trials | ask | epoch | end |\n|---|---|---|---|---|", sep="\n", flush=True)
    space = load_space("slc")
    with tempfile.TemporaryDirectory() as folder:
        url = options.ledger_url or f"sqlite:///{Path(folder, 'study.db')}"
        for opened in options.open:
            ledger = Ledger.create(url, f"bench-{uuid.uuid4().hex}")
            fill(ledger, space, options.ended)
            print(measure(ledger, space, opened, options.ended + opened + SAMPLE), flush=True)
            ledger.delete_study()


if __name__ == "__main__":
    main()
