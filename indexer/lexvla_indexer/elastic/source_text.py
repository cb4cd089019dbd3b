"""The text of ``_source`` as the server keeps it, and a change of some fields that leaves the rest.

Python's json module, like the server's own ``_update``, would write ``12.50`` as ``12.5``, and cut
numbers that have more digits than a float64. So fields are put into the text itself.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from elasticsearch import Elasticsearch

__all__ = ["SOURCE_TEXT", "keep_source_text", "spliced"]

SOURCE_TEXT = "source_text"

_SPACE = " \t\n\r"
_decode = json.JSONDecoder().raw_decode


def keep_source_text(client: Elasticsearch) -> None:
    """Let a client give each document of a multi-get the text of its ``_source`` too."""
    from elasticsearch.serializer import CompatibilityModeJsonSerializer

    class WithText(CompatibilityModeJsonSerializer):
        def loads(self, data: bytes) -> Any:
            answer = super().loads(data)
            if isinstance(answer, dict) and "docs" in answer:
                texts = list(_source_texts(data.decode()))
                for each, text in zip(answer["docs"], texts, strict=True):
                    each[SOURCE_TEXT] = text
            return answer

    client.transport.serializers.serializers[WithText.mimetype] = WithText()


def spliced(text: str, dropped: Collection[str], added: Mapping[str, str]) -> str:
    """Return a JSON object's text without some members, and with others at its end.

    ``added`` has the JSON text of each value. All other text stays as it is.

    Example:
        >>> spliced('{ "price" : 12.50, "lex":{} }', ["lex"], {"lex": '{"a":1}'})
        '{ "price" : 12.50,"lex":{"a":1} }'
    """
    start = _skip(text, 0)
    members = list(_members(text, start))
    parts: list[str] = []
    before = start + 1
    for member in members:
        if member.key not in dropped:
            # The first has no comma before it, whatever was there.
            lead = text[before : member.begin] if parts else text[start + 1 : members[0].begin]
            parts += [lead, text[member.begin : member.end]]
        before = member.end
    ours = ",".join(f"{json.dumps(key)}:{value}" for key, value in added.items())
    comma = "," if ours and parts else ""
    return f"{text[: start + 1]}{''.join(parts)}{comma}{ours}{text[before:]}"


class _Member(NamedTuple):
    key: str
    begin: int
    value: int
    end: int


def _source_texts(text: str) -> Iterator[str]:
    """Yield the text of each document's ``_source`` in the answer to a multi-get, or nothing."""
    docs = next(each for each in _members(text, _skip(text, 0)) if each.key == "docs")
    place = _skip(text, docs.value + 1)
    while text[place] != "]":
        found, end = "", place + 1
        for member in _members(text, place):
            end = member.end
            if member.key == "_source":
                found = text[member.value : member.end]
        yield found
        place = _skip(text, _skip(text, end) + 1)
        if text[place] == ",":
            place = _skip(text, place + 1)


def _members(text: str, start: int) -> Iterator[_Member]:
    """Yield the members of the object that starts there."""
    place = _skip(text, start + 1)
    while text[place] != "}":
        key, end = _decode(text, place)
        value = _skip(text, _skip(text, end) + 1)
        _, end = _decode(text, value)
        yield _Member(key, place, value, end)
        place = _skip(text, end)
        if text[place] == ",":
            place = _skip(text, place + 1)


def _skip(text: str, place: int) -> int:
    """Return the place of the next character that is not white space."""
    while text[place] in _SPACE:
        place += 1
    return place
