"""Inject faults into a search at random moments and check that nothing is lost.

Usage: `python -m scripts.chaos --kills 20 --seed 1`.
"""

import argparse
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

from scripts.arguments import positive
from scripts.chaos.study import Chaos, Fault

MOMENTS = {
    "driver": ("starting", "suggesting", "training", "writing", "reporting", "finishing", "ending"),
    "worker": ("suggesting", "training", "writing", "reporting"),
    "stop": ("starting", "suggesting", "training", "writing", "reporting", "finishing", "ending"),
    "tracker": ("suggesting", "training", "reporting"),
    "node": ("suggesting", "training", "writing", "reporting"),
    "head": ("starting", "suggesting", "training", "writing", "reporting", "finishing"),
}
"""Phases of a run in which each kind of fault may be injected."""
CLUSTERED = ("node", "head")
"""Kinds that need a cluster of several nodes; the others are injected into a run with a private cluster."""


def draw_faults(kills: int, seed: int, kind: str) -> list[Fault]:
    """Draw the faults of a seed; `kind` is a key of MOMENTS, or "any" for a random kind that needs no cluster."""
    draw = random.Random(seed)
    private = [name for name in MOMENTS if name not in CLUSTERED]
    kinds = [draw.choice(private) if kind == "any" else kind for _ in range(kills)]
    return [Fault(k, draw.choice(MOMENTS[k]), draw.randint(1, 4), draw.random(), draw.random()) for k in kinds]


def run(chaos: Chaos, faults: list[Fault]) -> int:
    """Inject every fault and print one line each; returns the number of faults with problems."""
    failed = 0
    if chaos.server is not None:
        chaos.server.start()
    for number, fault in enumerate(faults, start=1):
        moment_s, problems = chaos.strike(fault)
        problems += chaos.check()
        description = f"{fault.kind:8}{fault.moment:10}{moment_s:5.1f} s into the run"
        print_result(f"{number:>3}/{len(faults)}  {description}  ledger: {chaos.checks.status()}", problems)
        failed += bool(problems)
    problems = chaos.finish()
    print_result(f"    end  ledger: {chaos.checks.status()}", problems)
    return failed or int(bool(problems))


def print_result(text: str, problems: list[str]) -> None:
    """Print a line with "ok" or "FAILED", and the problems below."""
    print(f"{text}  {'FAILED' if problems else 'ok'}", *problems, sep="\n      ", flush=True)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser("python -m scripts.chaos", description=__doc__)
    parser.add_argument("--kills", type=positive, default=20, metavar="N", help="faults to inject (default: 20)")
    parser.add_argument(
        "--seed", type=int, default=1, metavar="S", help="random seed of kinds and moments (default: 1)"
    )
    parser.add_argument(
        "--kind", choices=(*MOMENTS, "any"), default="driver", help="target of the faults (default: driver)"
    )
    parser.add_argument("--storage", type=Path, metavar="DIR", help="new folder, kept (default: a temporary one)")
    return parser.parse_args()


def main() -> int:
    """Run the command line; returns the exit code: 0 if all checks passed, else 1."""
    options, began = parse(), time.monotonic()
    faults = draw_faults(options.kills, options.seed, options.kind)
    folder = (options.storage or Path(tempfile.mkdtemp(prefix="fgsearch-chaos-"))).resolve()
    ray = Path(tempfile.mkdtemp(prefix="fg-", dir="/tmp"))  # Linux limits the path of a socket to 107 characters
    chaos = Chaos(folder, ray, served=options.kind in ("tracker", "any"), clustered=options.kind in CLUSTERED)
    failed = len(faults)
    try:
        failed = run(chaos, faults)
    finally:
        chaos.close()
        shutil.rmtree(ray, ignore_errors=True)
        if failed:
            print(f"all files are kept in {folder}, the output of the runs in driver.log")
        elif options.storage is None:
            shutil.rmtree(folder, ignore_errors=True)
    print(f"{time.monotonic() - began:.0f} s; the study was extended to {chaos.budget} trials")
    print(f"{len(faults) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
