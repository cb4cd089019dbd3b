"""How a command declares its options, and options shared by several commands.

A command's options are a dataclass. Its fields say how argparse reads them::

    @dataclass(frozen=True)
    class Options(IndexOptions, JsonOptions):
        ids: list[str] = positional("the items' ids", metavar="ID", nargs="+")
        dry_run: bool = flag("delete nothing")
"""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from lexvla.errors import LexVLAError
from lexvla_search.cli.console import UsageError, note

if TYPE_CHECKING:
    from lexvla import LexVLA

__all__ = [
    "IndexOptions",
    "JsonOptions",
    "ModelOptions",
    "add_arguments",
    "flag",
    "load_model",
    "not_empty",
    "option",
    "plot_file",
    "positional",
    "positive",
    "refuse_options",
    "whole",
]

PLOTS = (".png", ".svg")


def positional(what: str, **settings: Any) -> Any:
    """Declare a positional argument; the settings are those of `add_argument`."""
    return field(metadata={"positional": True, "help": what, **settings})


def option(what: str, **settings: Any) -> Any:
    """Declare an option named like its field; the settings are those of `add_argument`.

    ``group`` puts it under a heading of its own in the help.
    """
    return field(metadata={"help": what, **settings})


def flag(what: str) -> Any:
    """Declare an option that takes no value."""
    return option(what, action="store_true")


def add_arguments(parser: argparse.ArgumentParser, options: type) -> None:
    """Add the arguments that a dataclass declares: its own first, then those of its bases."""
    declared = {each.name: dict(each.metadata) for each in fields(options)}
    groups: dict[str, Any] = {}
    for kind in options.__mro__:
        for name in inspect.get_annotations(kind):
            settings = declared.pop(name, None)
            if settings is None:
                continue
            target: Any = parser
            if group := settings.pop("group", None):
                target = groups.get(group) or parser.add_argument_group(group)
                groups[group] = target
            flags = name if settings.pop("positional", False) else _flag_of(name)
            target.add_argument(flags, **settings)


def _flag_of(name: str) -> str:
    return f"-{name}" if len(name) == 1 else f"--{name.replace('_', '-')}"


def refuse_options(options: Any, names: Iterable[str], beside: str) -> None:
    """Refuse options that mean nothing beside something else: `UsageError` names the first."""
    usual = {each.name: each.metadata.get("default") for each in fields(options)}
    for name in names:
        if getattr(options, name) not in (usual[name], None, False):
            raise UsageError(f"{_flag_of(name)} does not go with {beside}")


def not_empty(text: str) -> str:
    """Read a text that must not be empty."""
    # An unset shell variable gives an empty path, which would mean the current folder.
    if not text.strip():
        raise argparse.ArgumentTypeError("must not be empty")
    return text


def positive(text: str) -> int:
    """Read a whole number of at least 1."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, not {text!r}")
    return number


def whole(text: str) -> int:
    """Read a whole number of at least 0."""
    if not (text.isascii() and text.isdecimal()):
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 0, not {text!r}")
    return int(text)


def plot_file(text: str) -> str:
    """Read the file name of a plot."""
    if not text.lower().endswith(PLOTS):
        raise argparse.ArgumentTypeError(f"must name a file that ends in {' or '.join(PLOTS)}")
    return text


@dataclass(frozen=True)
class IndexOptions:
    """Which index a command works on."""

    index: str = option(
        "where the index is, such as photos.lex", type=not_empty, required=True, metavar="ADDRESS"
    )


@dataclass(frozen=True)
class ModelOptions:
    """Which model a command uses."""

    model: str | None = option("a folder or a hub id (default: the bundled model)", metavar="M")
    device: str = option("where it runs: cpu, cuda, ...", default="cpu", metavar="D")

    def load_model(self, introduce: bool = False) -> LexVLA:
        """Load the model; see the function `load_model`."""
        return load_model(self.model, self.device, introduce)


@dataclass(frozen=True)
class JsonOptions:
    """How a command prints its result."""

    json: bool = flag("print the result as JSON")


def load_model(path: str | None, device: str = "cpu", introduce: bool = False) -> LexVLA:
    """Load a model from a folder or hub id, by default the one shipped, onto a device.

    With `introduce`, tell people what the model knows, if it says.
    """
    try:
        from lexvla import LexVLA
    except ImportError as error:
        raise LexVLAError(f"models cannot be loaded ({error}); see: lexvla doctor") from error
    model = LexVLA.from_pretrained(path, device=device)
    if introduce and model.config.knowledge:
        note(f"lexvla: {model.config.model_name} {model.config.knowledge}")
    return model
