"""Search with trials that are computed from a formula: python -m scripts.chaos.replayed_search SECONDS ...

SECONDS is the duration of an epoch; the other arguments are those of `search.run`, which runs unchanged.  For tests of
faults that do not depend on a training.  A trial writes the files of a training (see `replayed_study`), but its worker
needs half of the processor time: it imports no Transformers and trains nothing.  Driver, Ray, the checks and reports of
the worker, report, MLflow and audit are the product's.
"""

import runpy
import sys
from unittest.mock import patch

from scripts.chaos.replayed_worker import replay, send_report_without_frames
from search.cluster.ray_cluster import set_ray_environment


def main() -> None:
    """Run `search.run` as the main program, which exits the process."""
    set_ray_environment()  # before Ray is imported, by the next line
    with (
        patch("search.execution.ray_tune.run_trial", replay(float(sys.argv.pop(1)))),
        patch("search.report.background.send_report", send_report_without_frames),
    ):
        runpy.run_module("search.run", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
