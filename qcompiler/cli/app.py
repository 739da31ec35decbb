"""The table of verbs, and what holds for all of them: one sentence per error, and an exit code that means it.

0 all went well        1 refused or failed        2 wrong usage        130 stopped by Ctrl-C
"""

import importlib.metadata
import os
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from qcompiler.cli import (
    bench,
    compile,
    demo,
    doctor,
    explain,
    export,
    generate,
    models,
    report,
    train,
    train_check,
    tune,
)
from qcompiler.cli.screen import complain
from qcompiler.cli.stop import STOPPED
from qcompiler.errors import QCompilerError

VERBS: dict[str, Callable[..., None]] = {
    "compile": compile.run,
    "export": export.run,
    "explain": explain.run,
    "bench": bench.run,
    "generate": generate.run,
    "tune": tune.run,
    "train": train.run,
    "train-check": train_check.run,
    "report": report.run,
    "models": models.run,
    "doctor": doctor.run,
    "demo": demo.run,
}
DEBUG = "QCOMPILER_DEBUG"
WRONG_USAGE = 2


class Guarded(TyperGroup):
    """The group of verbs; whatever one of them raises ends here as one sentence on stderr."""

    def main(self, args: Sequence[str] | None = None, *rest: Any, **options: Any) -> Any:
        given = list(sys.argv[1:] if args is None else args)
        words = [word for word in given if word != "--debug"]
        debug = words != given or os.environ.get(DEBUG, "") not in ("", "0")
        try:
            code = super().main(words, *rest, **{**options, "standalone_mode": False})
            if code == STOPPED:  # typer has seen the KeyboardInterrupt, and says nothing
                raise KeyboardInterrupt
            sys.exit(code)
        except typer.TyperException as error:
            context = getattr(error, "ctx", None)
            more = f"; `{context.command_path} --help` tells more" if context else ""
            complain(f"{error.format_message().rstrip('.')}{more}")
            sys.exit(error.exit_code)
        except (KeyboardInterrupt, typer.Abort):
            complain("stopped by Ctrl-C")
            sys.exit(STOPPED)
        except BrokenPipeError:  # the reader, `head` say, has seen enough; Python would complain at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        except Exception as error:
            if debug:
                raise
            complain(sentence(error))
            sys.exit(1)


def sentence(error: Exception) -> str:
    """What to tell of an error; one that is not ours is a defect, and asks to be reported."""
    if isinstance(error, QCompilerError):
        return str(error)
    return (
        f"unexpected {type(error).__name__}: {str(error) or 'no message'}; "
        "run again with --debug for the traceback, and please report it"
    )


def show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"qcompiler {importlib.metadata.version('qcompiler')}")
        raise typer.Exit


app = typer.Typer(
    cls=Guarded,
    invoke_without_command=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)


@app.callback()
def top(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=show_version, is_eager=True)
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help=f"Show the traceback of an error; {DEBUG}=1 does the same.")
    ] = False,
) -> None:
    """Compile PyTorch models to integer arithmetic, and prove what runs."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(WRONG_USAGE)


for name, verb in VERBS.items():
    app.command(name)(verb)


def main() -> None:
    """The console script."""
    app(prog_name="qcompiler")
