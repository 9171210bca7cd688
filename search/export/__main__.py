# PYTHON_ARGCOMPLETE_OK
"""Export a trial as an ordinary Transformers folder: `python -m search.export --study NAME --storage DIR`."""

import argparse
import sys
from collections.abc import Sequence

from fgseg.cli import DONE, run_command
from fgseg.config.errors import ConfigError, FaultError
from search.cli.options import Parser, add_location_options, location_from
from search.export.model import export, read_origin
from search.ledger.catalog import open_ledger
from search.study.location import public_address
from search.tracking.model_registry import REGISTER_S, register


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code (see `fgseg.cli`)."""
    return run_command(parse, export_and_register, arguments)


def export_and_register(options: argparse.Namespace) -> int:
    """Export the trial, and register the best trial's model in MLflow; raises ConfigError, FaultError, OSError."""
    location = location_from(options)
    try:
        folder, written = export(location, open_ledger(location), options.trial, options.out)
    except ValueError as error:
        raise FaultError(str(error)) from None
    except OSError as error:
        if options.out is None:
            raise
        raise ConfigError(f"--out: {options.out} cannot be written ({error.strerror}); name another folder") from None
    print(f"{folder} {'written' if written else 'is up to date'}")
    if options.trial is None and options.out is None and not options.no_register:
        number = register(location.tracking_uri, read_origin(folder), folder, REGISTER_S)
        address = public_address(location.tracking_uri)
        print(f"version {number} of the model {location.study} in MLflow at {address}")
    return DONE


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; raises ConfigError."""
    parser = Parser(prog="python -m search.export", description=__doc__)
    add_location_options(parser)
    parser.add_argument("--trial", type=int, metavar="N", help="number of the trial (default: the best)")
    parser.add_argument(
        "--out",
        metavar="DIR",
        help="folder of the model (default: model, or with --trial model-N, in the study's folder)",
    )
    parser.add_argument(
        "--no-register", action="store_true", help="do not register the model in MLflow; implied by --trial and --out"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
