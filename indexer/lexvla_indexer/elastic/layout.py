"""What the server stores: an index's fields, how it describes itself, and its alias.

    id            the id, also as ``_id``: orders ties
    lex           sparse_vector: the words; terms as the vocabulary writes them
    codes         sparse_vector: the codes; column numbers as terms
    dense         dense_vector, by inner product
    strongest     the terms of the 16 strongest words, strongest first
    words         text, by BM25: the words of the document's text; left out if there are none
    filter        the terms of `lexvla_indexer.filter_terms`
    text, uri     the document's own, for others to search: text and keyword
    keyword, double, date, boolean
                  metadata by type, for Kibana: `lexvla_indexer.elastic.typed_fields`
    metadata      metadata as JSON, not searched
    fingerprint   not searched
    patches       int16, base64: the patch of each word by ascending column; left out if all are -1

``_source`` keeps everything: a partial update, ``_update_by_query`` or ``_reindex`` makes a
document anew from it. The exact rows of all legs are read from there too: the fields themselves
keep the weights of ``lex`` and ``codes`` with 9 significant bits.

``_meta`` has the `State`, and beside it the vocabulary, which is read only when it changes.
"""

from __future__ import annotations

import base64
import json
import re
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from lexvla.errors import (
    EngineUnavailableError,
    IndexCorruptError,
    IndexMissingError,
    IndexVersionError,
    InputError,
    UnsupportedError,
)
from lexvla.version import program_version
from lexvla.vocabulary import Vocabulary
from lexvla_indexer.document import Document
from lexvla_indexer.elastic.connection import Address, elastic_errors, following
from lexvla_indexer.elastic.product import DENSE_STORED, Json, Product
from lexvla_indexer.elastic.typed_fields import DYNAMIC_TEMPLATES, LONGEST, typed_fields
from lexvla_indexer.legs import VectorLeg

if TYPE_CHECKING:
    from elasticsearch import Elasticsearch


__all__ = [
    "ATTACHMENT",
    "FIELD_OF",
    "FILTER",
    "FLAT",
    "FLAT_DOCUMENTS",
    "FORMAT_VERSION",
    "ID",
    "KEY",
    "PATCHES",
    "SHOWN",
    "STRONGEST",
    "VOCABULARY",
    "WORDS",
    "AttachedError",
    "Fields",
    "State",
    "Store",
    "document_of",
    "leg_fields",
    "mappings",
    "packed",
    "settings",
    "unpacked",
]

FORMAT_VERSION = 3
# In _meta: of an index of ours, of every index with our vectors, and of an attached one.
KEY, VOCABULARY, ATTACHMENT = "lexvla", "lexvla_vocabulary", "lexvla_attachment"

ID, FILTER, WORDS, STRONGEST, PATCHES = "id", "filter", "words", "strongest", "patches"
FIELD_OF: dict[VectorLeg, str] = {"lexical": "lex", "codes": "codes", "dense": "dense"}
SHOWN = ("text", "uri", "metadata", "fingerprint")

# Up to this many documents the dense leg is searched exactly, by a scan.
FLAT_DOCUMENTS = 100_000
FLAT = "flat"

# Each index has an alias of its own for writes. With "require_alias" the server refuses writes to
# an index that was deleted meanwhile; otherwise it would make a new one for them.
_WRITE = "-write"

# An index without that alias and that of the readers was replaced and kept.

_WAIT = "30s"  # for an index that is starting up
_COPIES_SECONDS = 600.0  # for the replicas of a rebuilt index
_FRESH = 1.0  # seconds for which the alias is not looked up again
_REPLICAS = ("number_of_replicas", "auto_expand_replicas")

_WITH_FIELDS = f"-*.mappings._meta.{VOCABULARY}"
_DESCRIBED = f"{_WITH_FIELDS},-*.mappings.properties"

_KEPT = {"type": "keyword", "index": False, "doc_values": False}


class AttachedError(UnsupportedError):
    """The index is a user's own, with vectors of ours: `AttachedIndex` opens it."""


class Fields(NamedTuple):
    """The names of the fields that legs search, and of those that explain what they find."""

    legs: Mapping[VectorLeg, str]
    patches: str
    strongest: str
    id: str | None  # orders ties; None if no field has the id


@dataclass(frozen=True)
class State:
    """Describe an index, in ``_meta`` of its mapping.

    Attributes:
        vocabulary_sha256: Names the vocabulary; empty before the first vectors, if none was given.
        widths: The number of columns of each leg; empty before the first vectors.
        dense: How the dense leg is searched: ``flat``, exactly, ``int8_hnsw``, or not at all:
            ``stored``.
        has_text: Whether a document with text was ever added.
        notes: What `write_note` stored, by name, such as fitted weights of legs.
    """

    model: str | None = None
    vocabulary_sha256: str = ""
    widths: Mapping[str, int] = field(default_factory=dict)
    dense: str = FLAT
    has_text: bool = False
    writer_version: str = field(default_factory=program_version)
    notes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def fields(self) -> Fields:
        """Where a document has what searches read."""
        return Fields(FIELD_OF, PATCHES, STRONGEST, ID)

    def dump(self) -> dict[str, Any]:
        """Return the state as ``_meta``."""
        return {KEY: {"format_version": FORMAT_VERSION, **asdict(self)}}

    @classmethod
    def load(cls, place: Address, found: Mapping[str, Any]) -> State:
        """Read what `dump` made; another form raises IndexCorruptError, or `AttachedError`."""
        if ATTACHMENT in found:
            raise AttachedError(f"{place}: is an index of your own, which is attached")
        if KEY not in found:
            raise _foreign(place)
        try:
            values = dict(found[KEY])
            number = values.pop("format_version")
            if number != FORMAT_VERSION:
                age = "newer" if number > FORMAT_VERSION else "older"
                rule = f"format {number} is {age} than this program, which reads {FORMAT_VERSION}"
                if number < FORMAT_VERSION:
                    rule += "; index the items again under another name"
                raise IndexVersionError(f"{place}: {rule}")
            widths = {leg: values["widths"][leg] for leg in FIELD_OF if leg in values["widths"]}
            return cls(**{**values, "widths": widths})
        except (KeyError, TypeError, ValueError) as error:
            raise IndexCorruptError(f"{place}: its _meta is damaged") from error


def _foreign(place: Address) -> IndexCorruptError:
    """Return the error for an index that another program made."""
    rule = f"{place}: LexVLA did not make this index"
    if place.product.attaches:
        rule += f", and it is not attached; lexvla attach {place} --help says how to"
    return IndexCorruptError(rule)


def settings(shards: int, product: Product) -> dict[str, Any]:
    """Return the settings of a new index.

    Only commits refresh it: otherwise readers would see parts of them.
    """
    return {
        "number_of_shards": shards,
        "auto_expand_replicas": "0-1",
        "refresh_interval": "-1",
        **product.settings,
    }


def mappings(state: State, product: Product) -> dict[str, Any]:
    """Return the mapping of a new index."""
    return {
        "dynamic": "strict",
        "_meta": state.dump(),
        "dynamic_templates": DYNAMIC_TEMPLATES,
        "properties": {
            ID: {"type": "keyword"},
            FILTER: {"type": "keyword", "doc_values": False},
            STRONGEST: {"type": "keyword"},
            # Words come as our tokenizer makes them. K1 and B are the server's defaults.
            WORDS: {"type": "text", "analyzer": "whitespace", "index_options": "freqs"},
            "text": {"type": "text"},
            "uri": {"type": "keyword", "ignore_above": LONGEST},
            **dict.fromkeys(("metadata", "fingerprint"), _KEPT),
            PATCHES: {"type": "binary"},
            **typed_fields(product),
            **product.fields,
            **leg_fields(state, product),
        },
    }


def leg_fields(state: State, product: Product) -> dict[str, Any]:
    """Return the mapping's fields of the legs that an index has."""
    fields: dict[str, Any] = {FIELD_OF["lexical"]: product.words_field()}
    if "codes" in state.widths:
        fields[FIELD_OF["codes"]] = product.words_field()
    if "dense" in state.widths:
        fields[FIELD_OF["dense"]] = product.dense_field(state.widths["dense"], state.dense)
    return fields


def document_of(name: str, source: Mapping[str, Any]) -> Document:
    """Return a document from what is stored of it."""
    text, uri, metadata, fingerprint = (source[each] for each in SHOWN)
    return Document(name, uri, text, json.loads(metadata), fingerprint)


@dataclass(frozen=True)
class _Found:
    index: str
    vocabulary_sha256: str


class Store:
    """Find the index that an alias means now, and change how it describes itself.

    Attributes:
        index: The name of the index that is read and written.
        state: How it describes itself.
        seen_fields: Indices, with metadata fields that some document of theirs has had.
    """

    def __init__(self, client: Elasticsearch, address: Address) -> None:
        self.client = client
        self.address = address
        self.product = address.product
        self.index = ""
        self.state = State()
        self.seen_fields: set[tuple[str, str]] = set()
        self._form = re.compile(re.escape(address.name) + r"-\d{6}")
        self._checked = 0.0
        self._is_being_built = False

    def find(self) -> bool:
        """Move to the index that the alias means. Return whether there is one.

        IndexCorruptError if it is not ours, or there are several.
        """
        # Of another program's index that has fields but no _meta, the first leaves nothing.
        found = self._described(_DESCRIBED) or self._described(_WITH_FIELDS)
        if not found:
            return False
        if len(found) > 1:
            names = ", ".join(sorted(found))
            raise IndexCorruptError(f"{self.address}: the alias means several indices: {names}")
        ((self.index, described),) = found.items()
        self.state = State.load(self.address, described["mappings"].get("_meta", {}))
        self._checked = time.monotonic()
        return True

    def _described(self, filter_path: str) -> Json:
        """Return what the server says of the index that the alias means, by its name, if any."""
        with elastic_errors(self.address):
            return self.client.indices.get_mapping(
                index=self._name,
                ignore_unavailable=True,
                allow_no_indices=True,
                filter_path=filter_path,
            ).body

    def refuse_filtered(self) -> None:
        """Raise UnsupportedError if the alias shows only a part of its index.

        Searches go to the index itself, and would show all of it.
        """
        name = self.address.name
        with elastic_errors(self.address):
            found = self.client.options(ignore_status=404).indices.get_alias(
                name=name, filter_path="*.aliases"
            )
        aliases = [alias for each in found.body.values() for alias in each["aliases"].values()]
        if any("filter" in alias for alias in aliases):
            rule = f"is an alias with a filter, which LexVLA would not apply; use {self.index}"
            raise UnsupportedError(f"{self.address}: {rule}")

    @property
    def target(self) -> str:
        """The alias to write to the index by."""
        return self.index + _WRITE

    @property
    def _name(self) -> str:
        return self.index if self._is_being_built else self.address.name

    def refresh(self) -> None:
        """Look up the alias again, if that was a while ago or nothing was there."""
        if not self.state.widths or time.monotonic() - self._checked > _FRESH:
            self.check()

    def check(self) -> None:
        """Look up the alias again; IndexMissingError if there is no index any more."""
        if not self.find():
            raise IndexMissingError(self.address)

    def wait(self) -> None:
        """Wait until the index can be searched.

        EngineUnavailableError if some of its shards are on no server.
        """
        client = self.client.options(ignore_status=408)
        with elastic_errors(self.address):
            health = client.cluster.health(
                index=self._name, level="indices", wait_for_status="yellow", timeout=_WAIT
            )
            shards = sum(each["number_of_shards"] for each in health.get("indices", {}).values())
            if not health["timed_out"] and health["active_primary_shards"] < shards:
                # A new index counts as yellow before its shards are there.
                health = client.cluster.health(
                    index=self._name, wait_for_active_shards=shards, timeout=_WAIT
                )
        if health["timed_out"] or health["status"] == "red":
            missing = health["unassigned_shards"]
            rule = f"its health is {health['status']}: {missing} of its shards are on no server"
            raise EngineUnavailableError(f"{self.address}: {rule}")

    def make(self, state: State, shards: int) -> None:
        """Make an index with its alias; if another program just did, take that one."""
        with elastic_errors(self.address):
            name = self._next()
            try:
                self.product.create_index(
                    self.client,
                    name,
                    settings(shards, self.product),
                    mappings=mappings(state, self.product),
                    aliases={self.address.name: {}, name + _WRITE: {}},
                    wait_for_active_shards=0,  # `wait` does
                )
            except self.product.refused() as error:
                if getattr(error, "error", None) != "resource_already_exists_exception":
                    raise
        self.check()

    def begin_rebuild(self, state: State, shards: int | None) -> None:
        """Make an index that the alias does not mean yet, and move to it.

        What an earlier rebuild left unfinished is deleted. UnsupportedError if the alias means an
        index that was made under another name: readers of that name would lose it.
        """
        old = self.index if self.find() else None
        if old is not None and not self._form.fullmatch(old):
            rule = f"means {old}, which was made under another name; rebuild it under that name"
            raise UnsupportedError(f"{self.address}: {rule}")
        wanted = settings(shards or 1, self.product)
        with elastic_errors(self.address):
            if old is not None:
                kept = self.client.indices.get_settings(index=old).body[old]["settings"]["index"]
                if shards is None:
                    wanted["number_of_shards"] = kept["number_of_shards"]
            # Before the others are deleted: another rebuild that still writes must not find this.
            self.index = self._next()
            for name, found in self._numbered().items():
                described = found["mappings"].get("_meta", {})
                is_unfinished = self.address.name not in found["aliases"]
                if is_unfinished and name + _WRITE in found["aliases"] and KEY in described:
                    self.client.indices.delete(index=name)
            # No retries: after a lost answer, this index would seem to be another program's.
            self.product.create_index(
                self.client.options(max_retries=0),
                self.index,
                # Copies are made at the end, so that each document is indexed only once.
                {**wanted, "auto_expand_replicas": False, "number_of_replicas": 0},
                mappings=mappings(state, self.product),
                aliases={self.target: {}},
                wait_for_active_shards=0,
            )
        self._is_being_built = True
        self.check()

    def publish(self, keep_old: int) -> None:
        """Give the alias to the new index, and delete old ones but the newest, in one step."""
        with elastic_errors(self.address):
            alias = self.address.name
            old = [name for name in self._meant() if name != self.index]
            replicas: dict[str, Any] = {"auto_expand_replicas": "0-1"}
            for name in old:
                kept = self.client.indices.get_settings(index=name).body[name]["settings"]["index"]
                replicas = {each: kept[each] for each in _REPLICAS if each in kept}
            if str(replicas.get("auto_expand_replicas", "false")) != "false":
                replicas.pop("number_of_replicas", None)
            self.client.indices.put_settings(index=self.index, settings=replicas)
            self._wait_for_copies(old)
            actions: list[Mapping[str, Any]] = []
            for place, name in enumerate([*old, *self.kept()]):
                if place >= keep_old:
                    actions.append({"remove_index": {"index": name}})
                elif name in old:
                    actions += self._withdrawn(name)
            actions.append({"add": {"index": self.index, "alias": alias}})
            try:
                self.client.indices.update_aliases(actions=actions)
            except self.product.failed():
                # Perhaps only the answer was lost.
                if self.index not in self._meant():
                    raise
        self._is_being_built = False

    def _wait_for_copies(self, old: Sequence[str]) -> None:
        """Wait until the new index is as safe from the loss of a node as those before it are."""
        for name in old:
            wanted = self.client.cluster.health(index=name)["status"]
            deadline = time.monotonic() + _COPIES_SECONDS
            while wanted == "green":
                health = self.client.options(ignore_status=408).cluster.health(
                    index=self.index, wait_for_status=wanted, timeout=_WAIT
                )
                if not health["timed_out"]:
                    break
                if time.monotonic() > deadline:
                    rule = f"{health['unassigned_shards']} shards of the new index are on no server"
                    raise EngineUnavailableError(f"{self.address}: {rule}; the old index stays")

    def kept(self) -> list[str]:
        """Return the indices that were kept when others replaced them, newest first."""
        with elastic_errors(self.address):
            numbered = self._numbered()
        kept = [
            name
            for name, found in numbered.items()
            if KEY in found["mappings"].get("_meta", {})
            and not found["aliases"].keys() & {self.address.name, name + _WRITE}
        ]
        return sorted(kept, reverse=True)

    def rollback(self, to: str | None) -> None:
        """Give the alias to a kept index, by default the one before this, and keep this."""
        self.check()
        kept = self.kept()
        if to is None:
            to = next((name for name in kept if name < self.index), None)
        if to is None:
            rule = "no earlier index is kept; lexvla index --rebuild --keep-old 1 keeps one"
            raise UnsupportedError(f"{self.address}: {rule}")
        if to not in kept:
            raise InputError(to, f"is not kept; kept are {', '.join(kept) or 'none'}")
        with elastic_errors(self.address):
            State.load(self.address, self._meta(to))
            given = [
                {"add": {"index": to, "alias": alias}} for alias in (self.address.name, to + _WRITE)
            ]
            self.client.indices.update_aliases(actions=[*self._withdrawn(self.index), *given])
        self.check()
        self.wait()

    def _withdrawn(self, name: str) -> list[Mapping[str, Any]]:
        """Return what takes an index from readers and writers, and keeps it."""
        aliases = self.address.name, name + _WRITE
        return [{"remove": {"index": name, "alias": alias}} for alias in aliases]

    def abandon(self) -> None:
        """Delete the index that is being built, if there is one."""
        if self._is_being_built:
            with elastic_errors(self.address):
                # It has the alias if only the answer to `publish` was lost.
                if self.index not in self._meant():
                    self.client.indices.delete(index=self.index, ignore_unavailable=True)
            self._is_being_built = False

    def _meant(self) -> list[str]:
        if not self.client.indices.exists_alias(name=self.address.name):
            return []
        return list(self.client.indices.get_alias(name=self.address.name).body)

    def _numbered(self) -> dict[str, Any]:
        """Return all indices that are, were or will be behind the alias."""
        found = self.client.indices.get(index=f"{self.address.name}-*", allow_no_indices=True).body
        return {name: described for name, described in found.items() if self._form.fullmatch(name)}

    def _next(self) -> str:
        with elastic_errors(self.address):
            taken = [int(name.rpartition("-")[2]) for name in self._numbered()]
        return f"{self.address.name}-{max(taken, default=0) + 1:06}"

    def describe(self, vocabulary: Vocabulary | None = None, **changes: Any) -> None:
        """Change how the index describes itself, and add the fields of new legs."""
        state = replace(self.state, **changes)
        with elastic_errors(self.address):
            meta = {**self._meta(self.index), **state.dump()}
            if vocabulary is not None:
                meta[VOCABULARY] = packed(vocabulary)
            try:
                self._put(state, meta)
            except self.product.refused() as error:
                if not self.product.lacks_dense_field(error):
                    raise
                state = replace(state, dense=DENSE_STORED)
                self._put(state, {**meta, **state.dump()})
        self.state = state

    def _put(self, state: State, meta: Json) -> None:
        fields = leg_fields(state, self.product)
        self.client.indices.put_mapping(index=self.index, meta=meta, properties=fields)

    def _meta(self, index: str) -> Json:
        found = self.client.indices.get_mapping(index=index, filter_path="*.mappings._meta").body
        ((_, described),) = found.items() or [("", {})]
        return dict(described.get("mappings", {}).get("_meta", {}))

    def load_vocabulary(self) -> Vocabulary:
        """Read the terms of the lexical columns; IndexCorruptError if they were lost."""

        def found(newest: bool) -> _Found:
            if newest:
                self.check()
            return _Found(self.index, self.state.vocabulary_sha256)

        return following(found, self._vocabulary_of)

    def _vocabulary_of(self, found: _Found) -> Vocabulary:
        if not found.vocabulary_sha256:
            return Vocabulary(())
        with elastic_errors(self.address):
            stored = self._meta(found.index).get(VOCABULARY, "")
        vocabulary = unpacked(stored)
        if vocabulary.sha256 != found.vocabulary_sha256:
            rule = "has lost the vocabulary that it was made with"
            raise IndexCorruptError(f"{self.address}: {rule}")
        return vocabulary

    def save_vocabulary(self, vocabulary: Vocabulary) -> None:
        """Store the terms of the lexical columns, before anything that needs them."""
        self.describe(vocabulary, vocabulary_sha256=vocabulary.sha256)


def packed(vocabulary: Vocabulary) -> str:
    """Return a vocabulary as text for ``_meta``."""
    text = json.dumps({"terms": vocabulary.terms, "token_ids": vocabulary.token_ids})
    return base64.b64encode(zlib.compress(text.encode(), 9)).decode()


def unpacked(text: str) -> Vocabulary:
    """Return what `packed` wrote, or an empty vocabulary if that is damaged."""
    try:
        stored = json.loads(zlib.decompress(base64.b64decode(text)))
        return Vocabulary(stored["terms"], stored["token_ids"])
    except (KeyError, TypeError, ValueError, zlib.error):
        return Vocabulary(())
