"""The command line's process: errors as sentences, exit codes, signals, warnings."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Callable
from typing import Any, NoReturn

import click

from autodiffusion_opt import signals
from autodiffusion_opt.errors import UserError
from autodiffusion_opt.text import as_message, visible


def say(text: str) -> None:
    """A message on stderr, of one line or several."""
    click.echo(as_message(text), err=True)


def tell(text: str) -> None:
    """Text on stdout, of any length."""
    click.echo(visible(text, None, keep="\n\t"))


def run_and_leave(call: Callable[[], Any]) -> NoReturn:
    """Run a command and end the process with its exit code."""
    warnings.showwarning = _show_warning
    with signals.handled():
        _leave(exit_code(call))


def _show_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, file: Any = None, line: Any = None
) -> None:
    """Ours as one line; those of libraries with the place that they come from."""
    if category is UserWarning:
        say(f"warning: {message}")
    else:
        say(warnings.formatwarning(message, category, filename, lineno, line).rstrip())


def exit_code(call: Callable[[], Any]) -> int:
    """Of a command: 0, 2 for a user's mistake (told on stderr), 130 after Ctrl-C, 128 + number after another signal."""
    try:
        return int(call() or 0)
    except UserError as error:
        say(f"error: {error}")
        return 2
    except click.ClickException as error:
        error.message = as_message(error.message)  # type: ignore[misc]  # it repeats what was given
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort) as error:
        ended = error.__cause__ if isinstance(error, click.Abort) else error
        return 128 + (ended.number if isinstance(ended, signals.Ended) else signal.SIGINT)
    except BrokenPipeError:
        return 0
    except SystemExit as leave:
        return leave.code if isinstance(leave.code, int) else 1


def _leave(code: int) -> NoReturn:
    """Close the databases, and exit without waiting for threads of optimizers that never end."""
    opening = sys.modules.get("autodiffusion_opt.trials.opening")
    try:
        if opening is not None:
            opening.close_all()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)
