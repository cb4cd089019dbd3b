"""Refuse a metadata field that no document has, naming those that there are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from lexvla.errors import InputError

__all__ = ["check_known"]

LISTED_FIELDS = 50  # in a message


def check_known(
    fields: Iterable[str],
    purpose: str,
    has: Callable[[str], bool],
    listed: Callable[[], Iterable[str] | None],
    own: Sequence[str] = (),
) -> None:
    """Refuse a field that no document has.

    Args:
        fields: The fields asked for.
        purpose: What they are for, such as "sort by".
        has: Tell whether a document has a field.
        listed: Return all fields; ``None`` if there are no documents, so that nothing is known.
        own: What every document has.

    Raises:
        InputError: No document has such a field; the rule names those that exist.
    """
    for field in dict.fromkeys(fields):
        if field in own or has(field):
            continue
        names = listed()
        if names is None:
            return
        known = sorted(names)
        more = f" and {len(known) - LISTED_FIELDS:,} more" if len(known) > LISTED_FIELDS else ""
        said = ", ".join([*own, *known[:LISTED_FIELDS]]) or "none"
        rule = f"no document has such a field to {purpose}; there are {said}{more}"
        raise InputError(field, rule)
