"""The ``lexvla`` command: its arguments, errors and exit codes.

Exit codes: 0 done, 1 failed, 2 wrong usage (an unknown option, ``-k 0``, a query of neither text
nor image), 130 interrupted, 141 the reader of the output went away.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from lexvla.errors import GatheredInputError, LexVLAError
from lexvla_search.cli_evaluate import add_crossmodal, add_evaluate
from lexvla_search.cli_query import add_fitting, add_hits, add_query
from lexvla_search.cli_serve import add_api_key, add_serve
from lexvla_search.console import UsageError, note

__all__ = ["build_parser", "main"]

DONE, FAILED, USAGE, INTERRUPTED, NO_READER = 0, 1, 2, 130, 141

_ADDRESS = "where the index is, such as photos.lex"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(USAGE, f"lexvla: error: {message} (try: {self.prog} --help)\n")


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        from lexvla_search.commands import version

        print(f"lexvla {version()}")
        parser.exit()


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of every command. Each names the function that runs it."""
    parser = _Parser(prog="lexvla", description="Explainable search of images by words.")
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def command(name: str, handler: str, summary: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=summary, description=summary)
        made.set_defaults(handler=handler)
        return made

    demo = command("demo", "lexvla_search.demo:run", "search bundled images, with explanations")
    demo.add_argument("--index", type=_not_empty, metavar="DIR", help="keep the demo's index here")
    demo.add_argument("--serve", action="store_true", help="open the page on it")
    _add_model(demo)
    _add_json(demo)

    index = command("index", "lexvla_search.ingest:index", "put images and texts into an index")
    _add_source(index, nargs="?")
    index.add_argument(
        "--from-encoded", nargs="+", metavar="FILE", help="take vectors of lexvla encode instead"
    )
    _add_address(index)
    _add_model(index)
    index.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="skip items that are in the index unchanged (the default)",
    )
    index.add_argument("--prune", action="store_true", help="delete what is gone from the source")
    index.add_argument(
        "--rebuild",
        action="store_true",
        help="fill a new index, and swap it for the old one at the end (Elasticsearch only)",
    )
    _add_json(index)

    encode = command(
        "encode",
        "lexvla_search.ingest:encode",
        "write vectors of a source, or of queries (.tsv), to a file",
    )
    _add_source(encode)
    encode.add_argument(
        "--out", type=_not_empty, required=True, metavar="FILE", help="a .npz or .jsonl file"
    )
    encode.add_argument(
        "--shard", type=_shard, default=(1, 1), metavar="I/N", help="only part I of N, such as 1/4"
    )
    _add_model(encode)
    _add_json(encode)

    search = command(
        "search", "lexvla_search.query_commands:search", "find images by text, image and words"
    )
    _add_query(search)
    add_hits(search, _positive)
    _add_json(search)

    explain = command(
        "explain", "lexvla_search.query_commands:explain", "take one item's score apart"
    )
    explain.add_argument("id", metavar="ID", help="the item's id, as search prints it")
    _add_query(explain)
    explain.add_argument("--picture", metavar="PNG", help="draw the parts beside the image")
    explain.add_argument("--heatmap", metavar="PNG", help="draw where the words were read from")
    explain.add_argument("--word", metavar="W", help="draw this word only")
    _add_json(explain)

    fitting = command(
        "fit-fusion",
        "lexvla_search.query_commands:fit_fusion",
        "learn how to weigh an index's legs",
    )
    add_fitting(fitting)
    _add_address(fitting)
    _add_model(fitting)
    _add_json(fitting)

    delete = command("delete", "lexvla_search.commands:delete", "take items out of an index")
    delete.add_argument("ids", metavar="ID", nargs="+")
    _add_address(delete)
    _add_json(delete)

    compact = command(
        "compact", "lexvla_search.commands:compact", "give back the space of deleted items"
    )
    _add_address(compact)
    _add_json(compact)

    info = command(
        "info", "lexvla_search.commands:info", "print an index's counts, sizes and model"
    )
    _add_address(info)
    info.add_argument("--verify", action="store_true", help="read all files, and name damaged ones")
    _add_json(info)

    patchdis = command(
        "patchdis", "lexvla_search.studies:patchdis", "measure how well patches know their class"
    )
    patchdis.add_argument("--annotations", metavar="FILE", help="COCO instances; else demo scenes")
    patchdis.add_argument("--images", metavar="DIR", help="the folder of the annotated images")
    patchdis.add_argument(
        "--names",
        choices=("words", "text"),
        default="words",
        help="encode class names by their rows of the codebook (the default), or as texts",
    )
    _add_model(patchdis)
    _add_json(patchdis)

    sparsity = command(
        "sparsity", "lexvla_search.studies:sparsity", "measure retrieval against active words"
    )
    sparsity.add_argument(
        "source",
        metavar="SOURCE",
        nargs="?",
        help="a JSONL manifest of images with texts; else the demo's drawings with their labels",
    )
    sparsity.add_argument(
        "--side",
        choices=("both", "images", "texts"),
        default="both",
        help="whose vectors to cut",
    )
    sparsity.add_argument("--plot", metavar="FILE", help="draw a .png or .svg")
    _add_model(sparsity)
    _add_json(sparsity)

    evaluate = command(
        "evaluate", "lexvla_search.evaluate:evaluate", "measure search by known answers"
    )
    _add_address(evaluate)
    add_evaluate(evaluate, _positive)
    _add_model(evaluate)
    _add_json(evaluate)

    crossmodal = command(
        "crossmodal",
        "lexvla_search.crossmodal:crossmodal",
        "measure a model by the field's protocols",
    )
    add_crossmodal(crossmodal, _positive)
    _add_model(crossmodal)
    _add_json(crossmodal)

    train = command("train", "lexvla_search.commands:train", "train a model")
    train.add_argument("recipe", metavar="RECIPE", help="a TOML file")
    train.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    _add_json(train)

    serve = command("serve", "lexvla_search.serve:run", "serve the page and the REST API")
    _add_address(serve)
    _add_model(serve)
    add_serve(serve, _positive)

    api_key = command(
        "api-key", "lexvla_search.serve:api_key", "make or revoke a key for lexvla serve"
    )
    add_api_key(api_key)
    _add_json(api_key)

    doctor = command("doctor", "lexvla_search.doctor:run", "show what this machine can run")
    _add_json(doctor)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    try:
        _let_output_hold_any_name()
        args = build_parser().parse_args(arguments)
        module, name = args.handler.split(":")
        handler: Callable[[argparse.Namespace], int] = getattr(
            importlib.import_module(module), name
        )
        code = handler(args)
        sys.stdout.flush()
        return code
    except SystemExit as stop:  # argparse: 0 after --help, 2 after wrong usage
        return int(stop.code or 0)
    except UsageError as error:
        note(f"lexvla: error: {error}")
        return USAGE
    except BrokenPipeError:
        # Else Python complains once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return NO_READER
    except KeyboardInterrupt:
        note("lexvla: interrupted")
        return INTERRUPTED
    except (LexVLAError, OSError) as error:
        for one in error.errors if isinstance(error, GatheredInputError) else (error,):
            note(f"lexvla: error: {' '.join(str(one).split())}")
        return FAILED


def _add_source(parser: argparse.ArgumentParser, nargs: str | None = None) -> None:
    what = "a folder of images, a JSONL manifest, or the path or pattern of .tar shards"
    parser.add_argument("source", metavar="SOURCE", nargs=nargs, type=_not_empty, help=what)
    parser.add_argument(
        "--text-field", type=_not_empty, metavar="F", help="which field is the text"
    )
    parser.add_argument("--batch-size", type=_positive, default=64, metavar="N")
    parser.add_argument("--strict", action="store_true", help="fail if any item was left out")


def _add_address(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--index", type=_not_empty, required=True, metavar="ADDRESS", help=_ADDRESS)


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", metavar="M", help="a saved model; else the default one")
    parser.add_argument(
        "--device", default="cpu", metavar="D", help="where it runs: cpu, cuda, ..."
    )


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def _add_query(parser: argparse.ArgumentParser) -> None:
    add_query(parser)
    _add_address(parser)
    _add_model(parser)


def _not_empty(text: str) -> str:
    # An unset shell variable gives an empty path, which would mean the current folder.
    if not text.strip():
        raise argparse.ArgumentTypeError("must not be empty")
    return text


def _positive(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 1")
    return number


def _shard(text: str) -> tuple[int, int]:
    number, _, of = text.partition("/")
    if not (number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
        raise argparse.ArgumentTypeError(f"{text!r} is no part I/N with I from 1 to N, such as 1/4")
    return int(number), int(of)


def _let_output_hold_any_name() -> None:
    # A file's name may hold bytes that are no valid text; printing it must not fail.
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


if __name__ == "__main__":
    raise SystemExit(main())
