"""Which fields of a record are its text."""

from __future__ import annotations

from collections.abc import Callable

from lexvla.errors import InputError

__all__ = ["TextFields", "as_text"]


class TextFields:
    r"""The fields that ``--text-field`` names: those joined by ``+`` make a line, by ``,`` several.

    Attributes:
        names: All of them, in order.

    Example:
        >>> record = {"title": "Hearts", "text": "A red heart.", "tags": "love"}
        >>> TextFields("title+text,tags").text(record.__getitem__)
        'Hearts A red heart.\nlove'
    """

    def __init__(self, written: str) -> None:
        lines = written.split(",")
        self._lines = [[name.strip() for name in line.split("+")] for line in lines]
        self.names = [name for line in self._lines for name in line]

    def text(self, value_of: Callable[[str], str]) -> str:
        """Return the text; fields without a value are left out."""
        lines = (" ".join(filter(None, map(value_of, line))) for line in self._lines)
        return "\n".join(filter(None, lines))


def as_text(value: object, field: str, item: str, between: str) -> str:
    """Return a field's value as text: a string, none, or strings with ``between`` between them.

    InputError, naming the item, for any other value.
    """
    if value is None or isinstance(value, str):
        return value or ""
    if not isinstance(value, list | tuple) or not all(isinstance(each, str) for each in value):
        raise InputError(item, f"{field} must be a string or a list of strings, to be a text")
    return between.join(value)
