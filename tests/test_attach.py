"""A user's own index is filled, kept up, and left again; whatever else is in it stays as it is."""

from __future__ import annotations

import base64
import importlib
import json
import multiprocessing
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import elastic_fakes
from elastic_proxy import BUSY, Cut, Proxy
from image_bytes import encoded
from lexvla.errors import (
    EngineUnavailableError,
    IndexMissingError,
    InputError,
    UnsupportedError,
    VocabularyMismatchError,
)
from lexvla.vocabulary import Vocabulary
from lexvla_indexer import open_index
from lexvla_indexer.elastic import guarded, writer
from lexvla_indexer.elastic.attaching import attach
from lexvla_indexer.elastic.attachment import read_attachment
from lexvla_indexer.elastic.connection import Address, connect
from lexvla_indexer.elastic.filling import detach, fill
from lexvla_indexer.pointed_images import PointedImages
from lexvla_indexer.report import Report
from lexvla_search.cli import main

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
FORK = multiprocessing.get_context("fork")
PIXELS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}

pytestmark = pytest.mark.elasticsearch


@pytest.fixture(scope="module")
def products() -> Any:
    """Return the benchmark, whose products know nothing of us."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        yield importlib.import_module("attach")


@pytest.fixture(autouse=True)
def _cleaned() -> Iterator[None]:
    with elastic_fakes.cleaned():
        yield


def picture(colour: str) -> str:
    from PIL import Image

    return base64.b64encode(encoded(Image.new("RGB", (4, 4), PIXELS[colour]), "PNG")).decode()


@dataclass
class Shop:
    """An index of products and the ways to attach it."""

    address: Address
    encoder: Any
    images: PointedImages = field(default_factory=PointedImages)
    fields: dict[str, Any] = field(
        default_factory=lambda: {
            "image_field": "photo",
            "text_fields": ["title", "maker.name"],
            "lexical_field": "lex",
            "dense_field": "vec",
        }
    )

    def __post_init__(self) -> None:
        self.client = connect(self.address)

    def create(self, **options: Any) -> None:
        text: dict[str, Any] = {"type": "text"}
        kept = {"type": "keyword", "index": False, "doc_values": False}
        properties = {"photo": kept, "title": text, "maker": {"properties": {"name": text}}}
        properties |= {"day": {"type": "date"}, **options.pop("properties", {})}
        wanted = {"settings": {"number_of_shards": 2, **options.pop("settings", {})}}
        if is_new(self.client):
            wanted["settings"].setdefault("index.mapping.exclude_source_vectors", False)
        mappings = {"properties": properties, **options.pop("mappings", {})}
        self.client.indices.create(index=self.address.name, mappings=mappings, **wanted)

    def put(self, name: str, **source: Any) -> None:
        self.client.index(index=self.address.name, id=name, document=source)

    def put_text(self, name: str, text: str) -> None:
        headers = {"accept": "application/json", "content-type": "application/json"}
        path = f"/{self.address.name}/_doc/{name}"
        self.client.perform_request("PUT", path, headers=headers, body=text)

    def attach(self, **options: Any) -> Report:
        fields = {**self.fields, **options.pop("fields", {})}
        with connect(self.address) as client:
            made = attach(client, self.address, self.encoder, **fields)
            return fill(
                client,
                self.address,
                made,
                self.encoder,
                self.images,
                show_progress_bar=False,
                **options,
            )

    def source(self, name: str) -> Mapping[str, Any]:
        return self.client.get(index=self.address.name, id=name)["_source"]

    def words(self) -> dict[str, list[str]]:
        """Return the words of each document that has some."""
        self.client.indices.refresh(index=self.address.name)
        hits = self.client.search(index=self.address.name, size=1000)["hits"]["hits"]
        sources = {hit["_id"]: hit["_source"] for hit in hits}
        return {name: sorted(each["lex"]) for name, each in sources.items() if each.get("lex")}


def is_new(client: Any) -> bool:
    told = next(iter(client.nodes.info()["nodes"].values()))["version"]
    return tuple(map(int, told.split(".")[:2])) >= (9, 2)


def told(report: Report) -> dict[str, str]:
    return {each.item: each.rule for each in report.rejected}


@pytest.fixture
def shop(tmp_path, products) -> Iterator[Shop]:
    made = Shop(Address.parse(elastic_fakes.address(tmp_path)), products.MeanColour())
    with made.client:
        yield made


@pytest.fixture
def three(shop) -> Shop:
    shop.create()
    shop.put("a", photo=picture("red"), title="blue", price=1)
    shop.put("b", title="a green", maker={"name": ["Blue", "shop"]})
    shop.put("c", title=" ", price=2)
    return shop


@pytest.fixture
def on_newest() -> Iterator[None]:
    with elastic_fakes.newest():
        yield


def test_every_other_byte_stays(products, tmp_path, shop):
    check_every_other_byte(products, tmp_path, shop)


@pytest.mark.slow
def test_a_server_of_the_newest_version(on_newest, products, tmp_path):
    address = Address.parse(elastic_fakes.address(tmp_path))
    shop = Shop(address, products.MeanColour())
    with shop.client:
        check_every_other_byte(products, tmp_path, shop)
    other = Shop(address._replace(name=f"{address.name}-2"), products.MeanColour())
    with other.client:
        check_excluded_vectors(other)


def check_every_other_byte(products: Any, tmp_path: Path, shop: Shop) -> None:
    """1,000 products by hand-written code, images of three kinds, and the bad ones among them."""
    (folder := tmp_path / "photos").mkdir()
    client = products.Shop(elastic_fakes.url(), shop.address.name)
    with products.photos(folder) as base:
        excluded = ', "mapping.exclude_source_vectors": false}' if is_new(shop.client) else "}"
        client.create(products.SETTINGS[:-1] + excluded)
        sent = dict(products.products(1000, products.pointers(folder, base)))
        for name, text in sent.items():
            client.put(name, text)
        shop.images = PointedImages((), (base.removeprefix("http://"),), folder)
        shop.fields = {"image_field": "photo.url", "lexical_field": "lex", "dense_field": "vec"}
        report = shop.attach()
        rules = Counter(rule.split(" (")[0] for rule in told(report).values())
        assert rules == {
            "has neither an image nor a text": 20,
            "the server of its image says HTTP 404": 17,
            "the PNG file is damaged or truncated": 17,
            "its image is at 10.0.0.1; --allow-host 10.0.0.1 allows fetching from there": 16,
        }
        assert report.added == 1000 - 70
        assert products.compare(client, sent, filled=True) == 1000
        again = shop.attach()
    assert (again.added, again.rejected) == (0, [])
    assert detach(shop.client, shop.address) == 1000
    assert products.compare(client, sent, filled=True) == 0
    meta = shop.client.indices.get_mapping(index=shop.address.name).body[shop.address.name]
    assert meta["mappings"]["_meta"] == {"team": "shop", "schema": 7}


def check_excluded_vectors(shop: Shop) -> None:
    """A server that keeps vectors out of ``_source`` puts them back when it is asked."""
    shop.create(
        settings={"index.mapping.exclude_source_vectors": True},
        properties={"own": {"type": "dense_vector", "dims": 2}},
    )
    shop.put("a", title="red", own=[0.25, 0.5], price=12.5)
    with pytest.raises(UnsupportedError, match="exclude_source_vectors is true"):
        shop.attach()
    assert shop.attach(fields={"rewritten": True}).added == 1
    assert shop.attach().added == 0
    asked = {"query": {"match_all": {}}, "source": {"exclude_vectors": False}}
    (hit,) = shop.client.search(index=shop.address.name, **asked)["hits"]["hits"]
    assert hit["_source"]["own"] == [0.25, 0.5]
    assert hit["_source"]["lex"] == {"red": 1.0}
    assert hit["_source"]["vec"] == [1.0, 0.0, 0.0]
    assert detach(shop.client, shop.address) == 1
    (hit,) = shop.client.search(index=shop.address.name, **asked)["hits"]["hits"]
    assert hit["_source"] == {"title": "red", "own": [0.25, 0.5], "price": 12.5}


def test_what_is_stored_is_what_was_encoded(three):
    report = three.attach()
    assert (report.added, told(report)) == (
        2,
        {"c": "has neither an image nor a text (in photo, title, maker.name)"},
    )
    source = three.source("a")
    assert source["lex"] == {"red": 1.0}
    assert source["vec"] == [1, 0, 0]
    assert source["lexvla"].keys() == {"fingerprint", "strongest", "patches"}
    assert source["lexvla"]["strongest"] == ["red"]
    assert source["lexvla"]["patches"] == base64.b64encode(b"\0\0").decode()
    assert source["title"] == "blue"
    assert three.source("b")["lex"] == {"green": 1.0, "blue": 1.0}
    rejected = three.source("c")
    assert rejected["lexvla"]["rejected"] == report.rejected[0].rule
    assert rejected.keys() == {"title", "price", "lexvla"}
    found = three.client.search(
        index=three.address.name,
        query={"sparse_vector": {"field": "lex", "query_vector": {"green": 1.0}}},
    )
    assert [hit["_id"] for hit in found["hits"]["hits"]] == ["b"]
    near = three.client.search(
        index=three.address.name, knn={"field": "vec", "query_vector": [1, 0, 0], "k": 1}
    )
    assert [hit["_id"] for hit in near["hits"]["hits"]] == ["a"]


def test_a_later_run_reads_what_is_new_or_changed(three):
    three.attach()
    again = three.attach()
    assert (again.added, again.rejected) == (0, [])
    three.put("d", photo=picture("blue"))
    three.put("c", title="green")  # was rejected
    three.client.update(index=three.address.name, id="a", doc={"title": "no matter", "price": 3})
    three.put("b", title="red")  # replaced whole: our fields are gone
    report = three.attach()
    assert (report.added, report.rejected) == (3, [])
    assert three.words() == {"a": ["red"], "b": ["red"], "c": ["green"], "d": ["blue"]}
    three.client.update(index=three.address.name, id="a", doc={"photo": picture("green")})
    assert three.attach().added == 1
    assert three.words()["a"] == ["green"]


def test_a_document_that_lost_its_vectors_is_filled_again(three):
    three.attach()
    source = {name: value for name, value in three.source("a").items() if name != "lex"}
    three.put("a", **source)
    assert three.attach().added == 1
    assert three.words()["a"] == ["red"]


def test_rejected_documents_are_tried_again_only_if_asked(shop, tmp_path):
    from PIL import Image

    shop.create()
    shop.put("a", photo="late.png")
    shop.images = PointedImages(root=tmp_path)
    assert told(shop.attach()) == {"a": "no such file"}
    (tmp_path / "late.png").write_bytes(encoded(Image.new("RGB", (4, 4), "red"), "PNG"))
    assert shop.attach().added == 0
    assert shop.attach(retry_rejected=True).added == 1
    assert shop.source("a")["lexvla"].keys() == {"fingerprint", "strongest", "patches"}
    (tmp_path / "late.png").write_bytes(encoded(Image.new("RGB", (4, 4), "blue"), "PNG"))
    assert shop.attach().added == 0
    report = shop.attach(recheck=True)
    assert (report.added, report.skipped) == (1, 0)
    assert shop.words() == {"a": ["blue"]}
    report = shop.attach(recheck=True)
    assert (report.added, report.skipped) == (0, 1)


def test_newer_documents_by_a_date(shop):
    shop.create()
    shop.put("a", title="red", day="2024-05-01")
    shop.put("b", title="red", day="2024-05-02")
    assert shop.attach(fields={"since_field": "day"}).added == 2
    kept = read_attachment(shop.client, shop.address)
    assert kept is not None
    assert kept.cursor["since"] == 1714608000000
    shop.put("c", title="red", day="2024-05-03")
    shop.put("d", title="red")  # has no date, and was never filled
    shop.client.update(index=shop.address.name, id="a", doc={"title": "green"})  # of an old date
    changed = {"title": "blue", "day": "2024-05-02"}
    shop.client.update(index=shop.address.name, id="b", doc=changed)
    assert shop.attach().added == 3
    assert shop.words() == {"a": ["red"], "b": ["blue"], "c": ["red"], "d": ["red"]}


def test_fields_of_nested_lists_and_dotted_names(shop):
    shop.create(mappings={"dynamic": False})
    shop.fields = {"image_field": "pages.image", "text_fields": ["a.b"], "lexical_field": "lex"}
    shop.put("a", pages=[{"n": 1}, {"image": None}, {"image": [picture("red"), "x"]}])
    shop.put("b", **{"a.b": "green"})
    shop.put("c", a=[{"b": "blue"}, {"b": ["red", 7]}])
    shop.put("d", a={"b": {"c": "red"}})
    report = shop.attach()
    assert shop.words() == {"a": ["red"], "b": ["green"], "c": ["blue", "red"]}
    assert told(report) == {"d": "a.b must be a string or a list of strings, not dict"}
    assert "vec" not in shop.source("a")


def test_documents_with_routing_and_behind_an_alias(shop):
    shop.create(settings={"number_of_shards": 3})
    for number in range(9):
        shop.client.index(
            index=shop.address.name, id=f"{number}", routing=f"r{number}", document={"title": "red"}
        )
    for number in range(9):  # of one id, in several shards
        shop.client.index(
            index=shop.address.name, id="same", routing=f"r{number}", document={"title": "red"}
        )
    shop.client.indices.refresh(index=shop.address.name)
    same = int(shop.client.count(index=shop.address.name, q="_id:same")["count"])
    assert same > 1
    shop.client.indices.put_alias(index=shop.address.name, name=f"{shop.address.name}-alias")
    shop.address = shop.address._replace(name=f"{shop.address.name}-alias")
    report = shop.attach()
    assert (report.added, report.rejected) == (9 + same, [])
    assert shop.words() == {name: ["red"] for name in (*"012345678", "same")}
    assert detach(shop.client, shop.address) == 9 + same
    assert shop.words() == {}


def test_a_client_that_updates_meanwhile_loses_nothing(three, monkeypatch):
    """Between what we read of a document and what we write, another client changes it."""
    send = guarded.UserIndex._send
    changes = iter([("a", {"price": 99}), ("b", {"title": "a red"}), ("a", {"price": 100})])

    def changed_first(self: guarded.UserIndex, actions: Any) -> Any:
        if (change := next(changes, None)) is not None:
            three.client.update(index=three.address.name, id=change[0], doc=change[1])
        return send(self, actions)

    monkeypatch.setattr(guarded.UserIndex, "_send", changed_first)
    report = three.attach()
    assert next(changes, None) is None
    assert three.source("a")["price"] == 100
    assert three.words() == {"a": ["red"], "b": ["blue", "red"]}
    assert report.added == 2


def test_one_that_changes_a_document_of_several_lines(three, monkeypatch):
    send, prices = guarded.UserIndex._send_one, iter([1, 2])
    three.put_text("n", '{"title":\n"red"}')

    def changed_first(self: guarded.UserIndex, action: Any, text: str) -> Any:
        if (price := next(prices, None)) is not None:
            three.put_text("n", f'{{"title":\n"red","price":{price}}}')
        return send(self, action, text)

    monkeypatch.setattr(guarded.UserIndex, "_send_one", changed_first)
    assert three.attach().added == 3
    assert three.words()["n"] == ["red"]
    assert three.source("n")["price"] == 2


def test_documents_that_the_server_refuses(shop):
    shop.create(mappings={"dynamic": False})
    shop.put("a", title="red", more=1)
    shop.put_text("b", '{"title":\n"red", "more":1}')
    shop.put("c", title="green")
    shop.client.indices.put_mapping(index=shop.address.name, dynamic="strict")
    report = shop.attach()
    assert report.added == 1
    assert told(report).keys() == {"a", "b"}
    for rule in told(report).values():
        assert rule.startswith("the server refuses it: ")
        assert "[more] within [_doc] is not allowed" in rule
    assert told(shop.attach()).keys() == {"a", "b"}  # they could not be marked


def test_a_field_of_another_s_that_the_mapping_does_not_tell_of(shop):
    shop.create(mappings={"dynamic": False})
    shop.put("a", title="red", lex=[1])
    shop.put("b", title="red", lexvla={"theirs": 1})
    report = shop.attach()
    assert told(report) == {
        "a": "has 'lex' already, which lexvla attach did not put there",
        "b": "has 'lexvla' already, which lexvla attach did not put there",
    }
    assert shop.source("a") == {"title": "red", "lex": [1]}
    assert shop.source("b") == {"title": "red", "lexvla": {"theirs": 1}}


def test_a_document_that_goes_meanwhile(three, monkeypatch):
    encode = three.encoder.encode_image

    def deleted_first(images: Any) -> Any:
        three.client.delete(index=three.address.name, id="a")
        return encode(images)

    monkeypatch.setattr(three.encoder, "encode_image", deleted_first)
    assert three.attach().added == 1
    assert three.words() == {"b": ["blue", "green"]}


def run_until_killed(shop: Shop) -> None:
    shop.attach(batch_size=2)


def test_a_killed_run_loses_nothing_and_goes_on(shop):
    shop.create()
    for number in range(60):
        shop.put(f"{number:02}", title=("red", "green", "blue")[number % 3], n=number)
    shop.client.indices.refresh(index=shop.address.name)
    filled = 0
    for _ in range(3):
        run = FORK.Process(target=run_until_killed, args=(shop,))
        run.start()
        deadline = time.monotonic() + 60
        while shop_filled(shop) <= filled and run.is_alive() and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(run.pid or 0, signal.SIGKILL)
        run.join()
        now = shop_filled(shop)
        assert now >= filled
        filled = now
    report = shop.attach()
    assert report.added + filled == 60
    colours = ("red", "green", "blue")
    assert shop.words() == {f"{number:02}": [colours[number % 3]] for number in range(60)}
    assert [shop.source(f"{number:02}")["n"] for number in range(60)] == list(range(60))


def shop_filled(shop: Shop) -> int:
    shop.client.indices.refresh(index=shop.address.name)
    query = {"exists": {"field": "lexvla.fingerprint"}}
    return int(shop.client.count(index=shop.address.name, query=query)["count"])


def test_a_connection_that_breaks(three, monkeypatch):
    monkeypatch.setattr(writer, "PAUSES", (0.05,) * 6)
    monkeypatch.setattr(guarded, "PAUSES", (0.05,) * 6)
    faults = {
        "_bulk": [BUSY, Cut(1.0, 0.0), Cut(0.5), BUSY],
        "_mget": [BUSY, Cut(1.0, 0.5)],
        "_search": [BUSY],
    }

    def spoil(request: Any) -> Any:
        for part, left in faults.items():
            if request.asks(part) and left:
                return left.pop()
        return None

    with Proxy(elastic_fakes.url(), spoil) as proxy:
        three.address = Address.parse(proxy.address(three.address.name))
        report = three.attach()
    assert not any(faults.values())
    assert report.added == 2
    assert three.words() == {"a": ["red"], "b": ["blue", "green"]}


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (
            {"image_field": "foto"},
            InputError,
            "'foto': .* has no such field; it has: day",
        ),
        ({"text_fields": ["title.raw"]}, InputError, "title.raw"),
        ({"since_field": "title"}, InputError, "'title': must be a date"),
        ({"lexical_field": "title"}, InputError, "'title': the mapping has it already, as text"),
        ({"lexical_field": "vec"}, InputError, "each field to add needs a name of its own"),
        ({"lexical_field": "a.b"}, InputError, "must not be empty or have dots"),
        ({"lexical_field": None}, InputError, "--lexical-field names the field to add"),
        (
            {"image_field": None, "text_fields": []},
            InputError,
            "--image-field or --text-field names",
        ),
    ],
)
def test_fields_that_cannot_be(three, change, error, said):
    with pytest.raises(error, match=said):
        three.attach(fields=change)
    assert read_attachment(three.client, three.address) is None


def test_an_index_that_cannot_be_attached(three):
    name = three.address.name
    settings = partial(three.client.indices.put_settings, index=name)
    for block in ("read_only", "write", "read_only_allow_delete"):
        settings(settings={f"index.blocks.{block}": True})
        with pytest.raises(EngineUnavailableError, match=f"is read-only: index.blocks.{block}"):
            three.attach()
        settings(settings={f"index.blocks.{block}": None})
    with pytest.raises(IndexMissingError, match="no index at"):
        Shop(three.address._replace(name="lexvla-no-such"), three.encoder).attach()
    for number, (options, said) in enumerate(
        [
            ({"mappings": {"_source": {"excludes": ["x"]}}}, "keeps a part of _source only"),
            ({"mappings": {"_source": {"enabled": False}}}, "does not keep _source"),
            ({"settings": {"index.mapping.source.mode": "synthetic"}}, "does not keep _source"),
        ]
    ):
        other = Shop(three.address._replace(name=f"{name}-{number}"), three.encoder)
        other.create(**options)
        with pytest.raises(UnsupportedError, match=said):
            other.attach()
        with pytest.raises(UnsupportedError, match="is not attached"):
            detach(other.client, other.address)


def test_an_attachment_of_another_kind(three, products):
    three.attach()
    with pytest.raises(InputError, match="it is attached with photo; lexvla detach"):
        three.attach(fields={"image_field": "title"})
    three.fields = {}
    assert three.attach().added == 0  # the fields are known

    class Other(products.MeanColour):
        name = "other"

    three.encoder = Other()
    with pytest.raises(VocabularyMismatchError, match="with the model 'mean-colour'"):
        three.attach()
    three.encoder.vocabulary = Vocabulary(("x", "y", "z"))
    with pytest.raises(VocabularyMismatchError, match="with the vocabulary"):
        three.attach()


def test_fields_that_documents_have_already(shop):
    shop.create(properties={"lex": {"type": "sparse_vector"}})
    shop.put("a", lex={"x": 1.0}, title="red")
    shop.client.indices.refresh(index=shop.address.name)
    with pytest.raises(InputError, match="'lex': documents have it already"):
        shop.attach()
    assert shop.attach(fields={"lexical_field": "lex2"}).added == 1
    assert shop.source("a")["lex"] == {"x": 1.0}
    detach(shop.client, shop.address)
    assert shop.source("a") == {"lex": {"x": 1.0}, "title": "red"}
    assert shop.attach(fields={"lexical_field": "lex2"}).added == 1  # the mapping kept the fields


def test_by_the_command(three, monkeypatch, capsys):
    from lexvla_search.cli import arguments

    monkeypatch.setattr(arguments, "load_model", lambda *_: three.encoder)
    words = ["attach", str(three.address), "--image-field", "photo", "--text-field", "title"]
    words += ["--lexical-field", "lex"]
    assert main([*words, "--strict"]) == 1
    out, err = capsys.readouterr()
    assert out == "2 added, 1 rejected; 2 filled and 1 rejected in the index\n"
    assert "rejected 'c': has neither an image nor a text (in photo, title)" in err
    assert (
        "the rejected items are listed in documents that have lexvla.rejected; "
        "--retry-rejected tries them again"
    ) in err
    assert main(["attach", str(three.address), "--json"]) == 0
    numbers = json.loads(capsys.readouterr().out)
    assert numbers == {
        **{"index": str(three.address), "documents": 2, "rejected_documents": 1},
        **{"added": 0, "unchanged": 0, "rejected": 0, "wordless": 0, "texts cut": 0},
        **{"with losses": 0, "losses": []},
    }
    assert main(["detach", str(three.address)]) == 0
    assert capsys.readouterr().out.startswith("took LexVLA's fields out of 3 documents; ")
    assert main(["detach", str(three.address)]) == 1
    assert "is not attached" in capsys.readouterr().err
    for wrong in (["attach", "photos.lex"], ["detach", "photos.lex"]):
        assert main(wrong) == 2
    assert main([*words, "--image-root", "no/such/folder"]) == 2


def test_what_is_filled_is_found_with_exact_rows(three):
    three.attach()
    rows = three.encoder.encode_text(["red", "a green\n\nBlue shop"])
    query = three.encoder.encode_text(["green red"])
    with open_index(str(three.address)) as index:
        assert index.vocabulary == three.encoder.vocabulary
        sums = {
            "lexical": rows.lexical.toarray() @ query.lexical.toarray()[0],
            "dense": rows.dense @ query.dense[0],
        }
        for leg, expected in sums.items():
            (found,) = index.search(query, 10, leg)
            scores = dict(zip(found.ids, found.scores.tolist(), strict=True))
            assert scores == pytest.approx(dict(zip("ab", expected, strict=True)), rel=4e-3)
        fetched = index.fetch(["a", "b"]).encoding
    assert fetched.lexical.toarray().tolist() == rows.lexical.toarray().tolist()
    assert fetched.dense.tolist() == rows.dense.tolist()
    assert fetched.patches.tolist() == [0, 0, 0]
