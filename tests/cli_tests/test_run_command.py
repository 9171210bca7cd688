"""Exit codes and the error line of every command."""

import argparse
import os
import signal

import pytest

from fgseg.cli import DONE, FAULT, INTERRUPTED, MISTAKE, TERMINATED, run_command
from fgseg.config.errors import ConfigError, FaultError, one_line
from search.cli.signals import Signals, run_with_signals


def parse(arguments: object) -> argparse.Namespace:
    """Accept any command line."""
    return argparse.Namespace()


def raising(error: BaseException):
    """A command that raises."""

    def command(*_: object) -> int:
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (ConfigError("train.lr: got x"), MISTAKE, "error: train.lr: got x\n"),
        (FaultError("the database fails"), FAULT, "error: the database fails\n"),
        (FileNotFoundError(2, "No such file", "a.json"), FAULT, "error: a.json: No such file\n"),
        (OSError("the bucket fails"), FAULT, "error: the bucket fails\n"),
        (KeyboardInterrupt(), INTERRUPTED, "interrupted\n"),
    ],
)
def test_an_error_becomes_one_line_and_an_exit_code(
    error: BaseException, code: int, text: str, capsys: pytest.CaptureFixture[str]
):
    assert run_command(parse, raising(error), []) == code
    assert capsys.readouterr().err == text


def test_a_mistake_on_the_command_line_is_reported_like_any_other(capsys: pytest.CaptureFixture[str]):
    assert run_command(raising(ConfigError("no such flag")), lambda options: DONE, []) == MISTAKE
    assert capsys.readouterr().err == "error: no such flag\n"


def test_an_error_in_the_program_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        run_command(parse, raising(ZeroDivisionError()), [])


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, INTERRUPTED), (signal.SIGTERM, TERMINATED)])
def test_a_signal_before_anything_is_written_ends_the_command_with_its_code(
    number: signal.Signals, code: int, capsys: pytest.CaptureFixture[str]
):
    def command(options: argparse.Namespace, signals: Signals) -> int:
        os.kill(os.getpid(), number)
        return DONE

    before = signal.getsignal(number)
    assert run_with_signals(parse, command, []) == code
    assert signal.getsignal(number) is before
    assert "run the same command again" in capsys.readouterr().err


def test_one_line_keeps_the_whole_message_unless_its_first_line_is_asked_for():
    error = ValueError("the cause\n  and  a detail\n")
    assert one_line(error) == "the cause and a detail"
    assert one_line(error, first_line=True) == "the cause"
    assert one_line(error, with_type=True) == "ValueError: the cause and a detail"


def test_one_line_of_an_error_without_a_message_is_its_type():
    assert one_line(ValueError()) == one_line(ValueError(), with_type=True) == "ValueError"
