"""The `ndvit` command: the commands together, settings from YAML, and one message for every error.

The modules of the commands import torch, and everything built on it, inside their functions, so that `--help` is quick.
"""

import os
import re
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, get_args

from cyclopts import App, ArgumentCollection, CycloptsError, Parameter, UnknownOptionError
from cyclopts.config import Dict

from ndvit import __version__
from ndvit.cli.check import check
from ndvit.cli.convert import convert
from ndvit.cli.crossvalidate import crossvalidate
from ndvit.cli.embed import embed
from ndvit.cli.evaluate import evaluate
from ndvit.cli.explain import explain
from ndvit.cli.export import export
from ndvit.cli.info import info
from ndvit.cli.models import models
from ndvit.cli.predict import predict
from ndvit.cli.presets import presets
from ndvit.cli.pretrain import pretrain
from ndvit.cli.printing import error_line, plain_streams, remark
from ndvit.cli.push import push
from ndvit.cli.report import report
from ndvit.cli.serve import serve
from ndvit.cli.shard import shard
from ndvit.cli.starting import words
from ndvit.cli.train import train
from ndvit.cli.weights import weights
from ndvit.config.options import DERIVED
from ndvit.data.messages import DataWarning
from ndvit.load_report import WeightsWarning
from ndvit.processes import LOST, SUPERVISED, is_loss, started

app = App(
    name="ndvit",
    version=__version__,
    help="Vision Transformers for signals and images, trained on your own data.",
    default_parameter=Parameter(negative_iterable=(), consume_multiple=True),
    end_of_options_delimiter="--",
)
app.suppress_keyboard_interrupt = app.meta.suppress_keyboard_interrupt = False  # `main` handles interruptions
for _command in (
    check,
    train,
    crossvalidate,
    pretrain,
    shard,
    evaluate,
    report,
    predict,
    explain,
    embed,
    models,
    presets,
    weights,
    convert,
    export,
    serve,
    push,
    info,
):
    app.command(_command)


@app.meta.default
def _run(
    *tokens: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
    config: Path | None = None,
    debug: bool = False,
) -> Any:
    """Read settings that flags override, then run a command.

    Args:
        *tokens: The command and its flags.
        config: YAML file of settings, such as a run's config.yaml; flags override it.
        debug: Show the traceback of an error.
    """
    sources: tuple[Any, ...] = (_refuse_fractions,)
    if config is not None:
        if not config.is_file():
            raise FileNotFoundError(f"no settings at {config}")
        from ndvit.training.settings import read_config

        # under the name of every command, because a flat dict loses settings that are named like one, such as weights
        settings = dict.fromkeys(app, read_config(config))
        sources = (Dict(settings, source=str(config)), _refuse_fractions)
    app.config = sources
    try:
        return app(tokens, exit_on_error=False, print_error=False)
    finally:
        app.config = ()  # the settings do not apply to the next command of this process


def _refuse_fractions(_app: App, _commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Refuse a fraction for a whole number, which cyclopts would round silently."""
    for argument in arguments:
        kinds = {argument.hint, *get_args(argument.hint)}
        for token in argument.tokens if int in kinds and float not in kinds else ():
            if re.fullmatch(r"[-+]?\d*\.\d*[1-9]\d*", token.value):
                raise ValueError(f"{argument.name} must be a whole number, got {token.value}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the `ndvit` command.

    An error in the user's input is one message and exit status 2; an interruption is status 130, and SIGTERM 143.

    Args:
        arguments: words after `ndvit`; None takes those of the process.
    """
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    before = words.set(tuple(tokens))
    try:
        with plain_streams():
            _run_command(tokens)
    finally:
        words.reset(before)


class _Terminated(KeyboardInterrupt):
    """SIGTERM, which unwinds the command as Ctrl-C does."""


@contextmanager
def _ending_plainly(tokens: list[str]) -> Iterator[None]:
    """Raise `_Terminated` at SIGTERM, which otherwise ends the process without a word.

    Parts of commands that finish their step or file at a signal have handlers of their own, and so has `serve`, which
    ends by the signal itself after it has answered what it accepted.
    """
    alone = threading.current_thread() is not threading.main_thread()
    if alone or "serve" in tokens or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _terminate(*_: Any) -> None:
    raise _Terminated


def _run_command(tokens: list[str]) -> None:
    printed = set[str]()

    def print_warning(message: Warning | str, *place: Any, **more: Any) -> None:
        """Print a warning as one line, without the line of code that raised it, and each one once in a command."""
        if _device() == 0 and str(message) not in printed:
            printed.add(str(message))
            remark(f"warning: {message}")

    try:
        with warnings.catch_warnings(), _ending_plainly(tokens):
            warnings.simplefilter("always", DataWarning)
            warnings.simplefilter("always", WeightsWarning)
            warnings.showwarning = print_warning
            app.meta(tokens, exit_on_error=False, print_error=False)
    except _Terminated:
        remark("ended by SIGTERM")
        sys.exit(128 + signal.SIGTERM)
    except KeyboardInterrupt:
        remark("interrupted")
        sys.exit(130)
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has closed it
        sys.stderr.close()
        sys.exit(0)
    except (CycloptsError, ValueError, OSError, MemoryError, RuntimeError) as error:
        message = _message(error)
        if "--debug" in tokens or message is None:
            raise
        if not message:
            sys.exit(LOST)
        error_line(message)
        sys.exit(2)


def _device() -> int:
    """Number of this process among those that train together."""
    try:
        place = started()
    except ValueError:
        return 0
    return 0 if place is None else place.rank


def _message(error: Exception) -> str | None:
    """The message for an error in the user's input; None for an error in ndvit, which needs its traceback.

    It is empty where another process prints the reason.
    """
    if "torch" in sys.modules and is_loss(error):
        if SUPERVISED in os.environ or _device():
            return ""
        return (
            "another process of this run has ended or does not answer, and its own message has the reason: continue "
            "the run from its newest checkpoint with --resume"
        )
    if device := _device():
        message = _own_message(error)
        return None if message is None else f"device {device}: {message}"
    return _own_message(error)


def _own_message(error: Exception) -> str | None:
    if isinstance(error, MemoryError | RuntimeError):
        if not (isinstance(error, MemoryError) or "memory" in str(error)):
            return None
        first = next(iter(str(error).splitlines()), "")
        return (
            "out of memory: use a smaller --batch-size (with --accumulate the effective batch stays), "
            f"--grad-checkpointing or a smaller --input-size ({first})"
        )
    if isinstance(error, UnknownOptionError) and error.token.keyword:
        name = error.token.keyword.lstrip("-").replace("-", "_")
        if name in DERIVED:
            return f"{name} follows from the data and cannot be set"
    return str(error)
