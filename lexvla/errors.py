"""The errors that LexVLA raises."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

__all__ = [
    "EngineUnavailableError",
    "FilterSyntaxError",
    "GatheredInputError",
    "IndexCorruptError",
    "IndexLockedError",
    "IndexMissingError",
    "IndexVersionError",
    "InputError",
    "LexVLAError",
    "ModelError",
    "OptionalDependencyError",
    "UnknownDocumentError",
    "UnsupportedError",
    "VocabularyMismatchError",
]


class LexVLAError(Exception):
    """Base class of all errors of this project."""


class InputError(LexVLAError):
    """An item is invalid; has its name and the rule that it breaks."""

    def __init__(self, item: str, rule: str) -> None:
        self.item = item if len(item) <= 200 else item[:197] + "..."
        self.rule = rule
        super().__init__(f"{self.item!r}: {rule}")


class GatheredInputError(InputError):
    """Several items are invalid; the message has a line for each."""

    def __init__(self, errors: Sequence[InputError]) -> None:
        if not errors:
            raise ValueError("there must be an error")
        super().__init__(errors[0].item, errors[0].rule)
        self.errors = tuple(errors)
        self.args = ("\n".join(map(str, errors)),)


class UnknownDocumentError(InputError, KeyError):
    """An index has no document of this id; it may have been deleted meanwhile."""

    def __init__(self, name: str) -> None:
        super().__init__(name, "the index has no such id")

    __str__ = Exception.__str__  # KeyError's own puts quotes around the message


class VocabularyMismatchError(LexVLAError):
    """The vocabulary of an index and that of an encoding differ."""


class ModelError(LexVLAError):
    """A saved model is missing, incomplete, damaged or of an unknown kind."""


class IndexCorruptError(LexVLAError):
    """An index is damaged, or what is there is not an index."""


class IndexLockedError(LexVLAError):
    """Another writer holds the index."""


class IndexMissingError(LexVLAError):
    """There is no index at an address."""

    def __init__(self, address: object) -> None:
        made = f"lexvla index SOURCE --index {shlex.quote(str(address))}"
        super().__init__(f"no index at {address}; make one with: {made}")


class IndexVersionError(LexVLAError):
    """An index was written by a newer version of the format."""


class FilterSyntaxError(LexVLAError):
    """A filter expression cannot be read."""


class UnsupportedError(LexVLAError):
    """An engine or model does not support an operation."""


class EngineUnavailableError(LexVLAError):
    """An engine cannot be reached or started."""


class OptionalDependencyError(LexVLAError):
    """A package of an extra is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        self.package = package
        self.extra = extra
        super().__init__(f"{package} is not installed; run: pip install 'lexvla[{extra}]'")
