"""Break a search at random moments and see that nothing is lost: `python -m scripts.chaos --kills 20 --seed 1`."""

import argparse
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

from scripts.chaos.study import Chaos, Fault

MOMENTS = {
    "driver": ("starting", "asking", "training", "writing", "reporting", "telling", "ending"),
    "worker": ("asking", "training", "writing", "reporting"),
    "stop": ("starting", "asking", "training", "writing", "reporting", "telling", "ending"),
    "tracker": ("asking", "training", "reporting"),
    "node": ("asking", "training", "writing", "reporting"),
    "head": ("starting", "asking", "training", "writing", "reporting", "telling"),
}
"""When each kind of fault may happen."""
CLUSTERED = ("node", "head")
"""The kinds that break a cluster of several nodes; the others happen to a run with a private one."""


def draw_faults(kills: int, seed: int, kind: str) -> list[Fault]:
    """The faults of a seed; `kind` is one of MOMENTS, or "any" of those that need no cluster."""
    draw = random.Random(seed)
    private = [name for name in MOMENTS if name not in CLUSTERED]
    kinds = [draw.choice(private) if kind == "any" else kind for _ in range(kills)]
    return [Fault(k, draw.choice(MOMENTS[k]), draw.randint(1, 4), draw.random(), draw.random()) for k in kinds]


def run(chaos: Chaos, faults: list[Fault]) -> int:
    """Let every fault happen and tell it in a line; returns how many were not survived."""
    failed = 0
    if chaos.server is not None:
        chaos.server.start()
    for number, fault in enumerate(faults, start=1):
        moment_s, problems = chaos.strike(fault)
        problems += chaos.check()
        what = f"{fault.kind:8}{fault.moment:10}{moment_s:5.1f} s into the run"
        tell(f"{number:>3}/{len(faults)}  {what}  ledger: {chaos.books.status()}", problems)
        failed += bool(problems)
    problems = chaos.finish()
    tell(f"    end  ledger: {chaos.books.status()}", problems)
    return failed or int(bool(problems))


def tell(text: str, problems: list[str]) -> None:
    """Print a line, and below it whatever is wrong."""
    print(f"{text}  {'FAILED' if problems else 'ok'}", *problems, sep="\n      ", flush=True)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser("python -m scripts.chaos", description=__doc__)
    parser.add_argument("--kills", type=int, default=20, metavar="N", help="faults to inject (default: 20)")
    parser.add_argument("--seed", type=int, default=1, metavar="S", help="decides kinds and moments (default: 1)")
    parser.add_argument("--kind", choices=(*MOMENTS, "any"), default="driver", help="what is hit (default: driver)")
    parser.add_argument("--storage", type=Path, metavar="DIR", help="new folder, kept (default: a temporary one)")
    return parser.parse_args()


def main() -> int:
    """The command line; returns the exit code: 0 if everything was survived, else 1."""
    options, began = parse(), time.monotonic()
    faults = draw_faults(options.kills, options.seed, options.kind)
    folder = (options.storage or Path(tempfile.mkdtemp(prefix="fgsearch-chaos-"))).resolve()
    ray = Path(tempfile.mkdtemp(prefix="fg-", dir="/tmp"))  # a socket's path may have 107 characters only
    chaos = Chaos(folder, ray, served=options.kind in ("tracker", "any"), clustered=options.kind in CLUSTERED)
    failed = len(faults)
    try:
        failed = run(chaos, faults)
    finally:
        chaos.close()
        shutil.rmtree(ray, ignore_errors=True)
        if failed:
            print(f"everything is kept in {folder}, the output of the runs in driver.log")
        elif options.storage is None:
            shutil.rmtree(folder, ignore_errors=True)
    print(f"{time.monotonic() - began:.0f} s; the study was extended to {chaos.budget} trials")
    print(f"{len(faults) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
