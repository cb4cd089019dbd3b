"""The indices behind an alias: making, opening, swapping, and what they say of themselves."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from lexvla.errors import EngineUnavailableError, IndexCorruptError
from lexvla.vocabulary import Vocabulary
from lexvla_indexer.elastic.connection import Place, elastic_errors, refusal
from lexvla_indexer.elastic.following import following
from lexvla_indexer.elastic.layout import (
    KEY,
    VOCABULARY_ID,
    Meta,
    leg_fields,
    mappings,
    settings,
)

if TYPE_CHECKING:
    from elasticsearch import Elasticsearch

__all__ = ["Store"]

# Each index has an alias of its own to be written by. With "require_alias" the server refuses
# writes to an index that was deleted meanwhile; else it would make a new one for them.
_WRITE = "-write"

_WAIT = "30s"  # for an index that is just coming up
_FRESH = 1.0  # seconds for which the alias is not looked up again
_REPLICAS = ("number_of_replicas", "auto_expand_replicas")


@dataclass(frozen=True)
class _Found:
    index: str
    vocabulary_sha256: str


class Store:
    """Find the index that an alias means now, and change what it says of itself.

    Args:
        client: Of the server.
        place: The address.

    Attributes:
        index: The name of the index that is read and written.
        meta: What it says of itself.
    """

    def __init__(self, client: Elasticsearch, place: Place) -> None:
        self.client = client
        self.place = place
        self.index = ""
        self.meta = Meta()
        self._checked = 0.0
        self._is_being_built = False

    def find(self) -> bool:
        """Move to the index that the alias means. Return whether there is one.

        Raises:
            IndexCorruptError: It is none of ours, or the alias means several.
            IndexVersionError: A newer program wrote it.
        """
        with elastic_errors(self.place):
            found = self.client.indices.get_mapping(
                index=self._name, ignore_unavailable=True, allow_no_indices=True
            ).body
        if not found:
            return False
        if len(found) > 1:
            names = ", ".join(sorted(found))
            raise IndexCorruptError(f"{self.place}: the alias means several indices: {names}")
        ((self.index, described),) = found.items()
        self.meta = Meta.load(self.place, described["mappings"].get("_meta", {}))
        self._checked = time.monotonic()
        return True

    @property
    def target(self) -> str:
        """The alias to write the index by."""
        return self.index + _WRITE

    @property
    def _name(self) -> str:
        return self.index if self._is_being_built else self.place.name

    def refresh(self) -> None:
        """Look again what the alias means, if that was a while ago or nothing was there."""
        if not self.meta.widths or time.monotonic() - self._checked > _FRESH:
            self.check()

    def check(self) -> None:
        """Look again what the alias means.

        Raises:
            IndexCorruptError: There is no index any more.
        """
        if not self.find():
            made = f"lexvla index SOURCE --index {self.place}"
            raise IndexCorruptError(f"no index at {self.place}; make one with: {made}")

    def wait(self) -> None:
        """Wait until the index can be searched.

        Raises:
            EngineUnavailableError: Some of its shards are on no server.
        """
        client = self.client.options(ignore_status=408)
        with elastic_errors(self.place):
            health = client.cluster.health(
                index=self._name, level="indices", wait_for_status="yellow", timeout=_WAIT
            )
            shards = sum(each["number_of_shards"] for each in health.get("indices", {}).values())
            if not health["timed_out"] and health["active_primary_shards"] < shards:
                # Those of an index that was just made count as yellow before they are there.
                health = client.cluster.health(
                    index=self._name, wait_for_active_shards=shards, timeout=_WAIT
                )
        if health["timed_out"] or health["status"] == "red":
            missing = health["unassigned_shards"]
            rule = f"its health is {health['status']}: {missing} of its shards are on no server"
            raise EngineUnavailableError(f"{self.place}: {rule}")

    def make(self, meta: Meta, shards: int) -> None:
        """Make an index with its alias; if another program just did, take that one."""
        import elasticsearch

        with elastic_errors(self.place):
            name = self._next()
            try:
                self.client.indices.create(
                    index=name,
                    settings=settings(shards),
                    mappings=mappings(meta),
                    aliases={self.place.name: {}, name + _WRITE: {}},
                    wait_for_active_shards=0,  # `wait` does
                )
            except elasticsearch.BadRequestError as error:
                if error.error != "resource_already_exists_exception":
                    raise
        self.check()

    def begin_rebuild(self, meta: Meta, shards: int | None) -> None:
        """Make an index that the alias does not mean yet, and move to it.

        What an earlier rebuild left unfinished is deleted.
        """
        old = self.index if self.find() else None
        wanted = settings(shards or 1)
        with elastic_errors(self.place):
            if old is not None:
                kept = self.client.indices.get_settings(index=old).body[old]["settings"]["index"]
                if shards is None:
                    wanted["number_of_shards"] = kept["number_of_shards"]
            # Before the others are deleted: one that still writes to its own must not find this.
            self.index = self._next()
            for name, found in self._numbered().items():
                described = found["mappings"].get("_meta", {})
                if self.place.name not in found["aliases"] and KEY in described:
                    self.client.indices.delete(index=name)
            # Not tried again: if the answer is lost, this index is another program's, or seems so.
            self.client.options(max_retries=0).indices.create(
                index=self.index,
                # Copies are made once it is full: each document is indexed once only so.
                settings={**wanted, "auto_expand_replicas": False, "number_of_replicas": 0},
                mappings=mappings(meta),
                aliases={self.target: {}},
                wait_for_active_shards=0,
            )
        self._is_being_built = True
        self.check()

    def publish(self) -> None:
        """Give the alias to the index that was built, and delete the one before, in one step."""
        import elasticsearch

        with elastic_errors(self.place):
            alias = self.place.name
            # As it was before, if there was one.
            old = [name for name in self._meant() if name != self.index]
            replicas: dict[str, Any] = {"auto_expand_replicas": "0-1"}
            for name in old:
                kept = self.client.indices.get_settings(index=name).body[name]["settings"]["index"]
                replicas = {each: kept[each] for each in _REPLICAS if each in kept}
            if str(replicas.get("auto_expand_replicas", "false")) != "false":
                replicas.pop("number_of_replicas", None)
            self.client.indices.put_settings(index=self.index, settings=replicas)
            actions: list[Mapping[str, Any]] = [{"remove_index": {"index": name}} for name in old]
            actions.append({"add": {"index": self.index, "alias": alias}})
            try:
                self.client.indices.update_aliases(actions=actions)
            except (elasticsearch.TransportError, elasticsearch.ApiError):
                # It may have been done, and the answer lost; then the old index is not found.
                if self.index not in self._meant():
                    raise
        self._is_being_built = False

    def abandon(self) -> None:
        """Delete the index that is being built, if there is one."""
        if self._is_being_built:
            with elastic_errors(self.place):
                # It has the alias if the answer to that was lost.
                if self.index not in self._meant():
                    self.client.indices.delete(index=self.index, ignore_unavailable=True)
            self._is_being_built = False

    def _meant(self) -> list[str]:
        """Return the indices that the alias means."""
        if not self.client.indices.exists_alias(name=self.place.name):
            return []
        return list(self.client.indices.get_alias(name=self.place.name).body)

    def _numbered(self) -> dict[str, Any]:
        """Return all indices that are, were or will be behind the alias."""
        form = re.compile(re.escape(self.place.name) + r"-\d{6}")
        found = self.client.indices.get(index=f"{self.place.name}-*", allow_no_indices=True).body
        return {name: described for name, described in found.items() if form.fullmatch(name)}

    def _next(self) -> str:
        with elastic_errors(self.place):
            taken = [int(name.rpartition("-")[2]) for name in self._numbered()]
        return f"{self.place.name}-{max(taken, default=0) + 1:06}"

    def describe(self, **changes: Any) -> None:
        """Change what the index says of itself, and add the fields of new legs."""
        meta = replace(self.meta, **changes)
        with elastic_errors(self.place):
            self.client.indices.put_mapping(
                index=self.index, meta=meta.dump(), properties=leg_fields(meta)
            )
        self.meta = meta

    def load_vocabulary(self) -> Vocabulary:
        """Read the terms of the lexical columns.

        Raises:
            IndexCorruptError: They are missing, or not those that the index names.
        """

        def found(newest: bool) -> _Found:
            if newest:
                self.check()
            return _Found(self.index, self.meta.vocabulary_sha256)

        return following(found, self._vocabulary_of)

    def _vocabulary_of(self, found: _Found) -> Vocabulary:
        if not found.vocabulary_sha256:
            return Vocabulary(())
        with elastic_errors(self.place):
            client = self.client.options(ignore_status=404)
            answer = client.get(index=found.index, id=VOCABULARY_ID)
        if "error" in answer:  # not that the document is not there, but that the index is not
            raise refusal(self.place, 404, answer.body)
        if answer.get("found"):
            stored = json.loads(answer["_source"]["vocabulary"])
            vocabulary = Vocabulary(stored["terms"], stored["token_ids"])
            if vocabulary.sha256 == found.vocabulary_sha256:
                return vocabulary
        rule = "has lost the vocabulary that it was made with"
        raise IndexCorruptError(f"{self.place}: {rule}")

    def save_vocabulary(self, vocabulary: Vocabulary) -> None:
        """Keep the terms of the lexical columns, before anything that needs them."""
        text = json.dumps({"terms": vocabulary.terms, "token_ids": vocabulary.token_ids})
        with elastic_errors(self.place):
            self.client.index(
                index=self.target,
                id=VOCABULARY_ID,
                document={"vocabulary": text},
                require_alias=True,
            )
        self.describe(vocabulary_sha256=vocabulary.sha256)
