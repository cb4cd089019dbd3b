"""Whether an index of the user's own can be attached, and by which fields."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lexvla.encoder import Encoder
from lexvla.errors import (
    EngineUnavailableError,
    InputError,
    UnsupportedError,
    VocabularyMismatchError,
)
from lexvla_indexer.elastic.attachment import (
    Attachment,
    attached_fields,
    describe,
    excludes_vectors,
    write_attachment,
)
from lexvla_indexer.elastic.connection import Address, elastic_errors
from lexvla_indexer.elastic.layout import ATTACHMENT, FLAT_DOCUMENTS
from lexvla_indexer.legs import check_terms, widths_of

if TYPE_CHECKING:
    from elasticsearch import Elasticsearch

__all__ = ["attach", "check_writable"]

_BLOCKS = ("read_only", "read_only_allow_delete", "write")
_DATES = ("date", "date_nanos")


def attach(
    client: Elasticsearch,
    address: Address,
    encoder: Encoder,
    *,
    image_field: str | None = None,
    text_fields: Sequence[str] = (),
    lexical_field: str | None = None,
    dense_field: str | None = None,
    since_field: str | None = None,
    rewritten: bool = False,
) -> Attachment:
    """Add our fields to the mapping of an index, unless they are there; return how it is attached.

    Of an index that is attached already, fields that are not given are those it has.

    Args:
        client: A client of the server.
        address: An index, or an alias of one.
        encoder: Makes the vectors.
        image_field: Dotted path of the field that points at an image.
        text_fields: Dotted paths of the fields whose text is encoded where there is no image.
        lexical_field: The name of the sparse_vector to add.
        dense_field: The name of the dense_vector to add; without it, there is none.
        since_field: A date field by which later runs find new and changed documents.
        rewritten: Whether the server may write numbers anew; see `excludes_vectors`.

    Raises:
        EngineUnavailableError: The server cannot be reached, or the index is read-only.
        IndexCorruptError: The alias means several indices.
        IndexMissingError: There is no such index.
        InputError: A named field is not in the mapping, or one to add is there already.
        UnsupportedError: Its documents cannot be changed without changing other fields.
        VocabularyMismatchError: It is attached with another vocabulary or by another model.
    """
    name, mapping, meta = describe(client, address)
    before = Attachment.load(address, meta) if ATTACHMENT in meta else None
    check_writable(client, address, name, mapping, rewritten or before is not None)
    if before is None:
        if lexical_field is None:
            rule = "is not attached yet: --lexical-field names the field to add for words"
            raise InputError(str(address), rule)
        if image_field is None and not text_fields:
            rule = "is not attached yet: --image-field or --text-field names what to encode"
            raise InputError(str(address), rule)
        wanted = Attachment(
            image_field=image_field,
            text_fields=tuple(text_fields),
            lexical_field=lexical_field,
            dense_field=dense_field,
            model=encoder.name,
            vocabulary_sha256=encoder.vocabulary.sha256,
            widths=_widths(encoder, dense_field),
            since_field=since_field,
        )
        check_terms(encoder.vocabulary.terms, "Elasticsearch")
        with elastic_errors(address):
            if client.count(index=name)["count"] > FLAT_DOCUMENTS:
                wanted = replace(wanted, dense=address.product.graph)
        _check_new(client, address, name, mapping, wanted)
    else:
        _check_model(address, before, encoder)
        wanted = before
        given = {
            "image_field": image_field,
            "text_fields": tuple(text_fields) or None,
            "lexical_field": lexical_field,
            "dense_field": dense_field,
        }
        for field, value in given.items():
            if value not in (None, now := getattr(before, field)):
                fields = [now] if isinstance(now, str) else now or ["none"]
                rule = (
                    f"it is attached with {', '.join(fields)}; lexvla detach {address} comes first"
                )
                raise InputError(field, rule)
        if since_field not in (None, before.since_field):
            wanted = replace(before, since_field=since_field, cursor={})
    _check_named(address, mapping, wanted)
    if wanted != before:
        write_attachment(client, address, wanted, encoder.vocabulary)
    return wanted


def check_writable(
    client: Elasticsearch, address: Address, name: str, mapping: Mapping[str, Any], rewritten: bool
) -> None:
    """Refuse an index whose documents cannot be stored again as they are.

    ``name`` is the index's own. Errors are those of `attach`.
    """
    with elastic_errors(address):
        found = client.indices.get_settings(index=name, flat_settings=True).body
    settings = found[name]["settings"]
    for block in _BLOCKS:
        if settings.get(f"index.blocks.{block}") == "true":
            rule = f"index.blocks.{block} is set, so that nothing can be written"
            raise EngineUnavailableError(f"{address}: is read-only: {rule}")
    source = mapping.get("_source", {})
    mode = settings.get("index.mapping.source.mode") or source.get("mode") or "stored"
    if settings.get("index.mode") in ("logsdb", "time_series"):
        mode = settings["index.mode"]
    if mode != "stored" or source.get("enabled") is False:
        rule = "does not keep _source as it was sent, so that no document can be stored again"
        raise UnsupportedError(f"{address}: {rule}")
    if source.get("excludes") or source.get("includes"):
        rule = "keeps a part of _source only: fields outside it would be lost"
        raise UnsupportedError(f"{address}: {rule}")
    if (pipeline := settings.get("index.final_pipeline", "_none")) != "_none":
        rule = f"its final_pipeline {pipeline!r} changes documents whenever they are stored"
        raise UnsupportedError(f"{address}: {rule}")
    if not rewritten and excludes_vectors(client, address, name):
        rule = (
            "its setting index.mapping.exclude_source_vectors is true, as in indices made by 9.2 "
            "and newer: the server then writes the numbers of a document anew (12.50 as 12.5, and "
            "at most 17 digits). --allow-rewriting allows that; or copy the index into one where "
            "it is false"
        )
        raise UnsupportedError(f"{address}: {rule}")


def _widths(encoder: Encoder, dense_field: str | None) -> dict[str, int]:
    widths = widths_of(encoder.encode_text(["a"]))
    if dense_field is None:
        return {"lexical": widths["lexical"]}
    if "dense" not in widths:
        rule = f"the model {encoder.name!r} makes no dense vectors"
        raise UnsupportedError(f"{dense_field!r} cannot be filled: {rule}")
    return {leg: widths[leg] for leg in ("lexical", "dense")}


def _check_model(address: Address, before: Attachment, encoder: Encoder) -> None:
    for what, theirs, ours in (
        ("vocabulary", before.vocabulary_sha256[:12], encoder.vocabulary.sha256[:12]),
        ("model", before.model, encoder.name),
    ):
        if theirs != ours:
            rule = f"is attached with the {what} {theirs!r}, and this is {ours!r}"
            raise VocabularyMismatchError(
                f"{address}: {rule}; use that one, or lexvla detach {address} first"
            )


def _check_new(
    client: Elasticsearch,
    address: Address,
    name: str,
    mapping: Mapping[str, Any],
    wanted: Attachment,
) -> None:
    """Refuse fields to add that are another's; those that an earlier attachment left are ours."""
    if len(set(wanted.own_fields)) < len(wanted.own_fields):
        raise InputError(wanted.lexical_field, "each field to add needs a name of its own")
    fields = attached_fields(wanted)
    for own in wanted.own_fields:
        if "." in own or not own.strip():
            raise InputError(own, "the name of a field to add must not be empty or have dots")
        there = mapping.get("properties", {}).get(own)
        if there is None:
            continue
        made = fields[own]
        kinds = there.get("type", "object"), made["type"]
        if kinds[0] != kinds[1] or there.get("dims") != made.get("dims"):
            rule = f"the mapping has it already, as {kinds[0]}; name another field"
            raise InputError(own, rule)
        with elastic_errors(address):
            if client.count(index=name, query={"exists": {"field": own}})["count"]:
                raise InputError(own, "documents have it already; name another field")


def _check_named(address: Address, mapping: Mapping[str, Any], wanted: Attachment) -> None:
    named = (wanted.image_field, *wanted.text_fields, wanted.since_field)
    for field in filter(None, named):
        found = _mapped(mapping, field)
        if found is None:
            known = ", ".join(sorted(mapping.get("properties", {}))[:20]) or "none"
            raise InputError(field, f"{address} has no such field; it has: {known}")
        kind = found.get("type")
        if field == wanted.since_field and kind not in _DATES:
            raise InputError(field, f"must be a date, to find newer documents by; it is {kind}")


def _mapped(mapping: Mapping[str, Any], path: str) -> Mapping[str, Any] | None:
    """Return a field of the mapping by its dotted path; of what is not mapped, the part that is."""
    rest, dynamic = path.split("."), "true"
    while rest:
        fields = mapping.get("properties", {})
        dynamic = str(mapping.get("dynamic", dynamic)).lower()
        # A name may have dots itself.
        sizes = range(len(rest), 0, -1)
        size = next((n for n in sizes if ".".join(rest[:n]) in fields), 0)
        if not size:
            is_raw = mapping.get("enabled") is False or mapping.get("type") == "flattened"
            return mapping if is_raw or dynamic in ("false", "runtime") else None
        mapping = fields[".".join(rest[:size])]
        rest = rest[size:]
    return mapping
