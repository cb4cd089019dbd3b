"""How a user's own index says that LexVLA has filled fields of its documents.

In ``_meta`` of its mapping, beside the user's own keys:

    lexvla_attachment   the `Attachment`
    lexvla_vocabulary   the vocabulary, as in `lexvla_indexer.elastic.layout`

In each document that was filled, beside the user's own fields:

    LEXICAL_FIELD   sparse_vector: the words; terms as the vocabulary writes them
    DENSE_FIELD     dense_vector, by inner product
    STATE_FIELD     an object:
        fingerprint   keyword: what was encoded; absent if the document was not filled
        patches       int16, base64: the patch of each word by ascending column
        strongest     keyword: the terms of the 16 strongest words, strongest first
        rejected      keyword: the rule why the document could not be encoded
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from lexvla.errors import IndexCorruptError, IndexVersionError, UnsupportedError
from lexvla.version import program_version
from lexvla.vocabulary import Vocabulary
from lexvla_indexer.elastic.connection import Address, elastic_errors
from lexvla_indexer.elastic.layout import (
    ATTACHMENT,
    FLAT,
    KEY,
    VOCABULARY,
    packed,
    unpacked,
)
from lexvla_indexer.elastic.product import Json
from lexvla_indexer.elastic.refusals import refusal

if TYPE_CHECKING:
    from elasticsearch import Elasticsearch

__all__ = [
    "Attachment",
    "Described",
    "attached_fields",
    "describe",
    "excludes_vectors",
    "read_attached_vocabulary",
    "read_attachment",
    "remove_attachment",
    "write_attachment",
]

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Attachment:
    """Describe what was filled, and from what.

    Attributes:
        image_field: Dotted path of the field with a URL, a path or base64 of the image.
        text_fields: Dotted paths of the fields whose text is encoded, joined by a blank line.
        lexical_field: The sparse_vector.
        dense_field: The dense_vector.
        state_field: The object with the rest.
        model: Name of the encoder.
        vocabulary_sha256: Names the vocabulary.
        widths: The number of columns of ``lexical`` and ``dense``.
        dense: How the dense leg is searched: ``flat``, exactly, or ``int8_hnsw``.
        since_field: A date field by which new and changed documents are found.
        cursor: Up to where documents were read.
    """

    image_field: str | None
    text_fields: tuple[str, ...]
    lexical_field: str
    dense_field: str | None
    model: str | None
    vocabulary_sha256: str
    widths: Mapping[str, int]
    state_field: str = "lexvla"
    dense: str = FLAT
    since_field: str | None = None
    cursor: Mapping[str, Any] = field(default_factory=dict)
    writer_version: str = field(default_factory=program_version)

    @property
    def own_fields(self) -> tuple[str, ...]:
        """The fields of a document that are ours."""
        named = self.lexical_field, self.dense_field, self.state_field
        return tuple(name for name in named if name is not None)

    def dump(self) -> Json:
        """Return the attachment as keys of ``_meta``."""
        return {ATTACHMENT: {"format_version": FORMAT_VERSION, **asdict(self)}}

    @classmethod
    def load(cls, place: object, found: Mapping[str, Any]) -> Attachment:
        """Read what `dump` made; another form raises IndexCorruptError."""
        try:
            values = dict(found[ATTACHMENT])
            number = values.pop("format_version")
            if number != FORMAT_VERSION:
                age = "newer" if number > FORMAT_VERSION else "older"
                rule = f"its attachment's format {number} is {age} than this program's"
                raise IndexVersionError(f"{place}: {rule}, {FORMAT_VERSION}")
            return cls(**{**values, "text_fields": tuple(values["text_fields"])})
        except (KeyError, TypeError, ValueError) as error:
            raise IndexCorruptError(f"{place}: its attachment in _meta is damaged") from error


def attached_fields(attachment: Attachment) -> Json:
    """Return the fields that an attachment adds to the mapping."""
    fields: Json = {attachment.lexical_field: {"type": "sparse_vector"}}
    if attachment.dense_field is not None:
        fields[attachment.dense_field] = {
            "type": "dense_vector",
            "dims": attachment.widths["dense"],
            "similarity": "max_inner_product",
            "index_options": {"type": attachment.dense},
        }
    fields[attachment.state_field] = {
        "type": "object",
        "dynamic": "strict",
        "properties": {
            **{name: {"type": "keyword"} for name in ("fingerprint", "strongest", "rejected")},
            "patches": {"type": "binary"},
        },
    }
    return fields


class Described(NamedTuple):
    """An index as the server describes it: its own name, its mapping, and the mapping's _meta."""

    name: str
    mapping: Mapping[str, Any]
    meta: Json


def describe(client: Elasticsearch, address: Address, filter_path: str = "*") -> Described:
    """Return the one index that an address names, itself or by an alias.

    ``filter_path`` leaves out a part, such as the vocabulary.

    Raises:
        IndexCorruptError: The alias means several indices.
        IndexMissingError: There is no such index.
        UnsupportedError: It is a data stream, whose documents cannot be changed.
    """
    with elastic_errors(address):
        found = client.indices.get_mapping(index=address.name, filter_path=filter_path).body
    if not found:
        raise refusal(address, 404, {"error": {"type": "index_not_found_exception"}})
    if len(found) > 1:
        names = ", ".join(sorted(found))
        raise IndexCorruptError(f"{address}: the alias means several indices: {names}")
    ((index, described),) = found.items()
    if index.startswith(".ds-"):
        raise UnsupportedError(f"{address}: is a data stream, which only takes new documents")
    mapping = described["mappings"]
    return Described(index, mapping, dict(mapping.get("_meta", {})))


def excludes_vectors(client: Elasticsearch, address: Address, index: str) -> bool | None:
    """Return whether an index keeps vectors out of ``_source`` and puts them back when asked.

    The server then parses what is stored and writes it anew, and gives back weights of 9
    significant bits. Servers before 9.2 do not know of it: ``None``.
    """
    setting = "index.mapping.exclude_source_vectors"
    with elastic_errors(address):
        found = client.indices.get_settings(
            index=index, name=setting, flat_settings=True, include_defaults=True
        ).body[index]
    value = {**found.get("defaults", {}), **found["settings"]}.get(setting)
    return None if value is None else value == "true"


def read_attachment(client: Elasticsearch, address: Address) -> Attachment | None:
    """Return how an index is attached, or ``None``.

    IndexMissingError if there is no such index, IndexCorruptError if what it says is damaged.
    """
    meta = describe(client, address).meta
    return Attachment.load(address, meta) if ATTACHMENT in meta else None


def read_attached_vocabulary(
    client: Elasticsearch, address: Address, attachment: Attachment
) -> Vocabulary:
    """Return the terms of the lexical columns; IndexCorruptError if they were lost."""
    vocabulary = unpacked(describe(client, address).meta.get(VOCABULARY, ""))
    if vocabulary.sha256 != attachment.vocabulary_sha256:
        raise IndexCorruptError(f"{address}: has lost the vocabulary that it was attached with")
    return vocabulary


def write_attachment(
    client: Elasticsearch,
    address: Address,
    attachment: Attachment,
    vocabulary: Vocabulary | None = None,
) -> None:
    """Add the fields of an attachment to the mapping, and describe it there.

    The vocabulary stays as it is if none is given.

    Raises:
        LexVLAError: The mapping has one of the fields already, of another type.
        UnsupportedError: LexVLA itself made the index.
    """
    index, _, meta = describe(client, address)
    if KEY in meta:
        raise UnsupportedError(f"{address}: lexvla index made it; it has these vectors already")
    meta |= attachment.dump()
    if vocabulary is not None:
        meta[VOCABULARY] = packed(vocabulary)
    with elastic_errors(address):
        client.indices.put_mapping(index=index, meta=meta, properties=attached_fields(attachment))


def remove_attachment(client: Elasticsearch, address: Address) -> None:
    """Take the attachment and the vocabulary out of ``_meta``; the fields of a mapping stay."""
    index, _, meta = describe(client, address)
    with elastic_errors(address):
        kept = {name: value for name, value in meta.items() if name not in (ATTACHMENT, VOCABULARY)}
        client.indices.put_mapping(index=index, meta=kept)
