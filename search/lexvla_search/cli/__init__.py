"""The ``lexvla`` command: each subcommand is the module of that name in this folder.

Exit codes: 0 done, 1 failed, 2 wrong usage (an unknown option, ``-k 0``, options that exclude each
other), 130 interrupted, 141 the reader of the output went away.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any, NoReturn

from lexvla.errors import GatheredInputError, LexVLAError
from lexvla_search.cli.console import INTERRUPTED, UsageError, note

__all__ = ["COMMANDS", "main", "parse"]

DONE, FAILED, USAGE, NO_READER = 0, 1, 2, 141

# The summaries are here so that --help imports none of the commands.
COMMANDS = {
    "demo": "search the bundled images, with explanations",
    "index": "put images and texts into an index",
    "attach": "fill fields of an Elasticsearch index of your own, and keep them up to date",
    "detach": "remove the fields that lexvla attach filled",
    "watch": "index a folder, and what changes in it",
    "relocate": "tell an index where its folder lies now",
    "encode": "write the vectors of a source, or of queries (.tsv), to a file",
    "search": "find images by text, image and words",
    "explain": "break down one item's score",
    "fit-fusion": "learn how to weight an index's legs",
    "delete": "delete items from an index",
    "compact": "reclaim the space of deleted items",
    "rollback": "go back to the index from before a rebuild",
    "info": "print an index's counts, sizes and model",
    "patchdis": "measure how well patches are classified by class names",
    "sparsity": "measure retrieval against the number of active words",
    "evaluate": "measure search against known answers",
    "crossmodal": "measure a model by the field's protocols",
    "train": "train a model",
    "export": "write a model that runs without torch",
    "serve": "serve the page and the REST API",
    "api-key": "make or revoke a key for lexvla serve",
    "doctor": "show what this machine can run",
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(USAGE, f"lexvla: error: {message} (try: {self.prog} --help)\n")


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        from lexvla.version import program_version

        print(f"lexvla {program_version()}")
        parser.exit()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    try:
        _let_output_hold_any_name()
        # Of damaged metadata, without the file's name. The pixels are read all the same.
        warnings.filterwarnings("ignore", category=UserWarning, module="PIL")
        command, options = parse(sys.argv[1:] if arguments is None else arguments)
        code: int = command.run(options)
        sys.stdout.flush()
        return code
    except SystemExit as stop:  # argparse: 0 after --help, 2 after wrong usage
        return int(stop.code or 0)
    except UsageError as error:
        note(f"lexvla: error: {error}")
        return USAGE
    except BrokenPipeError:
        # Otherwise Python complains again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return NO_READER
    except KeyboardInterrupt:
        note("lexvla: interrupted")
        return INTERRUPTED
    except (LexVLAError, OSError) as error:
        for one in error.errors if isinstance(error, GatheredInputError) else (error,):
            note(f"lexvla: error: {' '.join(str(one).split())}")
        return FAILED


def parse(arguments: Sequence[str]) -> tuple[Any, Any]:
    """Return the module of the named command, and its options."""
    parser = _Parser(prog="lexvla", description="Explainable image search by words.")
    parser.add_argument(
        "--version",
        action=_Version,
        nargs=0,
        default=argparse.SUPPRESS,
        help="print the version and exit",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    named = next((argument for argument in arguments if argument in COMMANDS), "")
    module: Any = None
    chosen = parser
    for name, summary in COMMANDS.items():
        # Not by abbreviations: --prune of lexvla watch would mean --prune-anyway.
        command = commands.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        if name == named:
            from lexvla_search.cli.arguments import add_arguments

            module = importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
            add_arguments(command, module.Options)
            chosen = command
    options, unknown = parser.parse_known_args(arguments)
    if unknown:  # `parse_args` would point to the help of lexvla
        chosen.error(f"unrecognized arguments: {' '.join(unknown)}")
    given = vars(options)
    del given["command"]
    return module, module.Options(**given)


def _let_output_hold_any_name() -> None:
    # A file name may hold bytes that are not valid text; printing it must not fail.
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")
