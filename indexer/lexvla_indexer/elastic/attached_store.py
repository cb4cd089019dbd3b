"""A user's own index as it is now: what was filled, and which fields it has."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from functools import cached_property

from lexvla.errors import UnsupportedError
from lexvla_indexer.elastic.attachment import Attachment, describe, excludes_vectors
from lexvla_indexer.elastic.layout import ATTACHMENT, VOCABULARY, Fields, State, Store
from lexvla_indexer.elastic.mapped_fields import MappedFields
from lexvla_indexer.legs import VectorLeg

__all__ = ["AttachedState", "AttachedStore"]


@dataclass(frozen=True, kw_only=True)
class AttachedState(State):
    """Describe a user's own index, whose documents have our vectors in fields of ours."""

    attachment: Attachment
    mapped: MappedFields = field(compare=False)

    @property
    def fields(self) -> Fields:
        """Where a document has what searches read."""
        attachment, state = self.attachment, self.attachment.state_field
        legs: dict[VectorLeg, str] = {"lexical": attachment.lexical_field}
        if attachment.dense_field is not None:
            legs["dense"] = attachment.dense_field
        return Fields(legs, f"{state}.patches", f"{state}.strongest", None)


class AttachedStore(Store):
    """Find the index that an address means now; nothing is changed."""

    state: AttachedState

    @cached_property
    def whole_source(self) -> dict[str, bool]:
        """What makes servers of 9.2 and newer give vectors with ``_source``."""
        known = excludes_vectors(self.client, self.address, self.index)
        return {} if known is None else {"exclude_vectors": False}

    def find(self) -> bool:
        """Move to the index that the address means.

        IndexMissingError if there is none, IndexCorruptError if there are several,
        UnsupportedError if it is not attached.
        """
        self.index, mapping, meta = describe(
            self.client, self.address, f"-*.mappings._meta.{VOCABULARY}"
        )
        if ATTACHMENT not in meta:
            rule = f"is not attached; lexvla attach {self.address} --help says how to"
            raise UnsupportedError(f"{self.address}: {rule}")
        attachment = Attachment.load(self.address, meta)
        self.state = AttachedState(
            model=attachment.model,
            vocabulary_sha256=attachment.vocabulary_sha256,
            widths=attachment.widths,
            dense=attachment.dense,
            has_text=bool(attachment.text_fields),
            writer_version=attachment.writer_version,
            attachment=attachment,
            mapped=MappedFields(self.address, mapping),
        )
        self._checked = time.monotonic()
        return True
