# PYTHON_ARGCOMPLETE_OK
"""Search one approach family: `python -m search.run --space bas_cp`.  Running it again continues the study."""

import argparse
import sys
from collections.abc import Sequence

from fgseg.cli import add_config_options, add_json_option
from fgseg.config.errors import ConfigError
from fgseg.config.files import find_file, read_yaml
from fgseg.config.loading import parse_assignments
from search.cli.options import Parser, add_search_options, search_settings
from search.cli.signals import Signals, run_with_signals
from search.study.plan import Plan, make_plan, read_search
from search.study.space import list_spaces


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code (see `fgseg.cli`)."""
    return run_with_signals(parse, search_or_list, arguments)


def search_or_list(options: argparse.Namespace, signals: Signals) -> int:
    """Search, or print the spaces, the studies or the plan; returns the exit code."""
    if options.list or options.list_studies:
        return show_lists(options)
    if options.json and not options.dry_run:
        raise ConfigError("--json: only with --dry-run, --list or --list-studies; search.status has the results")
    plan = plan_from(options)
    if options.dry_run:
        return show_plan(plan, options.json)
    from search.compare.confirmation import search_and_confirm  # takes seconds: the settings are checked before

    return search_and_confirm(plan, signals)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; raises ConfigError."""
    parser = Parser(prog="python -m search.run", description=__doc__)
    add = parser.add_argument
    add("--space", metavar="NAME", help="approach family to search (see --list)")
    add("--list", action="store_true", help="print the search spaces and exit")
    add("--list-studies", action="store_true", help="print the studies of the storage and exit")
    add("--study", metavar="NAME", help="name of the study (default: <config>-<space>)")
    add_config_options(parser, settable="a setting, or search.KEY.low of a range", default="configs/quickstart.yaml")
    add_search_options(parser)
    add("--dry-run", action="store_true", help="print the resolved settings, the space and what would run, and exit")
    add_json_option(parser)
    return parser.parse_args(arguments)


def plan_from(options: argparse.Namespace) -> Plan:
    """Make the plan of a run from the options; raises ConfigError for an invalid setting."""
    if options.space is None:
        raise ConfigError(f"--space: got nothing, must be one of: {', '.join(list_spaces())}")
    return make_plan(
        options.space, options.config, parse_assignments(options.set), search_settings(options), options.study
    )


def show_lists(options: argparse.Namespace) -> int:
    """Print the spaces, or the studies of the storage or ledger that the settings and flags name."""
    from search.console.document_content import space_documents, study_documents
    from search.console.documents import print_document
    from search.console.listings import print_spaces, print_studies

    if options.list:
        spaces = space_documents()
        return print_document(spaces) if options.json else print_spaces(spaces)
    path = find_file(options.config)
    studies = study_documents(read_search(read_yaml(path).get("search") or {}, path, search_settings(options)))
    return print_document(studies) if options.json else print_studies(studies)


def show_plan(plan: Plan, as_json: bool) -> int:
    """Print what would run, as text or as JSON; raises ConfigError for a mistake that a run would refuse."""
    from search.console.document_content import plan_document
    from search.console.documents import print_document
    from search.console.listings import print_plan
    from search.execution.preflight import check_plan

    check_plan(plan)
    document = plan_document(plan)
    return print_document(document) if as_json else print_plan(plan, document)


if __name__ == "__main__":
    sys.exit(main())
