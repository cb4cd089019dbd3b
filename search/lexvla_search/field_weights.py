"""Fields of a user's own index to look for words in, with weights: ``title^2,description``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lexvla.errors import InputError
from lexvla_search.finite import is_finite

__all__ = ["field_weights_of"]

MOST_FIELDS = 32
MOST_WEIGHT = 1e6


def field_weights_of(given: object) -> dict[str, float]:
    """Read fields with their weights: ``title^2,description``, a list of such, or a mapping.

    InputError if they break a rule.
    """
    if isinstance(given, str):
        given = given.split(",")
    if isinstance(given, Mapping):
        pairs = list(given.items())
    elif isinstance(given, Sequence):
        pairs = [_pair(each) for each in given]
    else:
        raise InputError("text_fields", f"must be fields, such as title^2, not {given!r}")
    if not 1 <= len(pairs) <= MOST_FIELDS:
        raise InputError("text_fields", f"must be 1 to {MOST_FIELDS} fields, not {len(pairs)}")
    weights: dict[str, float] = {}
    for field, weight in pairs:
        if not isinstance(field, str) or not field:
            raise InputError("text_fields", f"must be names of fields, not {field!r}")
        if not is_finite(weight):
            raise InputError(field, f"its weight must be a finite number, not {weight!r}")
        if not 0 < weight <= MOST_WEIGHT:
            rule = f"its weight must be above 0 and at most {MOST_WEIGHT:,.0f}, not {weight:g}"
            raise InputError(field, rule)
        if field in weights:
            raise InputError(field, "is given twice in text_fields")
        weights[field] = float(weight)
    return weights


def _pair(text: object) -> tuple[str, float]:
    if not isinstance(text, str):
        raise InputError("text_fields", f"must be fields, such as title^2, not {text!r}")
    field, sign, weight = text.strip().rpartition("^")
    if not sign:
        return weight, 1.0
    try:
        return field, float(weight)
    except ValueError as error:
        raise InputError(field, f"its weight must be a number, not {weight!r}") from error
