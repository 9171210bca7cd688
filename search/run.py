# PYTHON_ARGCOMPLETE_OK
"""Search one approach family: `python -m search.run --space bas_cp`.  Running it again continues the study."""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from fgseg.config import ConfigError, parse_assignments, read_yaml
from fgseg.config_files import find_file
from search.command_line import MISTAKE, Parser
from search.config import SearchConfig
from search.plan import Plan, make_plan, read_search
from search.signals import Interrupted, Signals
from search.space import list_spaces


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code.

    0 done, 1 stopped by a fault, 2 the user's mistake, 130 interrupted (143 by SIGTERM).
    """
    with Signals() as signals:
        try:
            return carry_out(parse(arguments), signals)
        except ConfigError as error:
            print(f"error: {error}", file=sys.stderr)
            return MISTAKE
        except Interrupted:
            print("interrupted before a trial ran; the same command starts again", file=sys.stderr)
            return signals.code


def carry_out(options: argparse.Namespace, signals: Signals) -> int:
    """Do what the options ask for; returns the exit code."""
    if options.list or options.list_studies:
        return show_lists(options)
    plan = plan_from(options)
    if options.dry_run:
        from search.listing import print_plan

        return print_plan(plan)
    from search.driver import drive  # imports of seconds come after the mistakes that need none of them

    return drive(plan, signals)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; raises ConfigError."""
    parser = Parser(prog="python -m search.run", description=__doc__)
    add = parser.add_argument
    add("--space", metavar="NAME", help="approach family to search (see --list)")
    add("--list", action="store_true", help="show the search spaces and end")
    add("--list-studies", action="store_true", help="show the studies of the storage and end")
    add("--config", default="configs/quickstart.yaml", metavar="FILE", help="settings in YAML (default: %(default)s)")
    add(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting, or search.KEY.low of a range"
    )
    add("--study", metavar="NAME", help="name of the study (default: <config>-<space>)")
    add("--trials", type=int, metavar="N", help="trials of the whole study, finished ones included")
    add("--storage", metavar="DIR", help="folder of studies, or s3://bucket/prefix (default: runs)")
    add(
        "--ledger-url",
        metavar="URL",
        help="postgresql:// database of a team's ledger (default: a file in the study's folder)",
    )
    add("--tracking-uri", metavar="URI", help="MLflow server or database (default: <storage>/mlflow.db)")
    add("--ray-address", metavar="ADDR", help="Ray cluster to join (default: a private one on this machine)")
    add("--cpus-per-trial", type=float, metavar="N", help="processor cores of a trial (default: 1)")
    add(
        "--gpus-per-trial",
        type=float,
        metavar="N",
        help="GPUs of a trial, fractions allowed (default: 1 where there are any)",
    )
    add("--max-concurrent", type=int, metavar="N", help="most trials at once (default: as many as fit)")
    add("--max-failures", type=int, metavar="N", help="restarts of a trial whose process died (default: 2)")
    add("--max-failed-trials", type=int, metavar="N", help="failures in a row that stop the run (default: 5)")
    add("--on-oom", metavar="WHAT", help="when memory runs out: fail (default), or halve the micro-batch and go on")
    add("--allow-changed-batch", action="store_true", default=None, help="let a trial with a halved batch be the best")
    add("--keep-checkpoints", type=int, metavar="K", help="keep the weights of the K best trials (default: 3)")
    add(
        "--no-register",
        dest="register_model",
        action="store_false",
        default=None,
        help="do not register the best model in MLflow at the end",
    )
    add(
        "--accept-changes",
        action="store_true",
        default=None,
        help="continue a study with other settings, data or version",
    )
    add("--sampler", metavar="NAME", help="auto, gp, tpe or random (default: auto)")
    add("--pruner", metavar="NAME", help="none, asha or median (default: none)")
    add("--dry-run", action="store_true", help="show the resolved settings, the space and what would run, and end")
    return parser.parse_args(arguments)


def plan_from(options: argparse.Namespace) -> Plan:
    """What the options ask for, resolved and checked; raises ConfigError."""
    if options.space is None:
        raise ConfigError(f"--space: got nothing, must be one of: {', '.join(list_spaces())}")
    return make_plan(options.space, options.config, parse_assignments(options.set), flags(options), options.study)


def flags(options: argparse.Namespace) -> dict[str, Any]:
    """The flags that are settings of the search, by name; None where not given."""
    return {name: value for name, value in vars(options).items() if name in SearchConfig.model_fields}


def show_lists(options: argparse.Namespace) -> int:
    """Print the spaces, or the studies of the storage or ledger that the settings and flags name."""
    from search.listing import print_spaces, print_studies

    if options.list:
        return print_spaces()
    path = find_file(options.config)
    return print_studies(read_search(read_yaml(path).get("search") or {}, path, flags(options)))


if __name__ == "__main__":
    sys.exit(main())
