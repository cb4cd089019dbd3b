"""Attach an index of products, and compare every other field byte for byte, before and after.

    python benchmarks/attach.py [--documents N] [--version V] [--model]

Uses the server of LEXVLA_ELASTICSEARCH_URL, or starts one (`python scripts/elasticsearch_server.py
get` downloads it). The products are JSON as shops write it, by hand: spaces, escapes, numbers of
many digits, nested objects. A third of the images are URLs of a server on this machine, a third
paths, a third base64; some are missing, dead or damaged. What is compared is the text that was
sent against the text that `GET _source` returns, after attach, after a change by another client,
and after detach. Without --model, the encoder is the mean colour: the time is then that of reading,
decoding and storing.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import io
import json
import os
import random
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import numpy as np
from PIL import Image
from scipy import sparse

from lexvla.encoder import Encoder
from lexvla.encoding import Encoding
from lexvla.vocabulary import Vocabulary
from lexvla_indexer.elastic.attaching import attach
from lexvla_indexer.elastic.connection import Address, connect
from lexvla_indexer.elastic.filling import detach, fill
from lexvla_indexer.pointed_images import PointedImages

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))

import elasticsearch_server

URL = "LEXVLA_ELASTICSEARCH_URL"
PORT = 9275
OWN = ("lex", "vec", "lexvla")
MAPPING = """{"dynamic": "strict", "_meta": {"team": "shop", "schema": 7}, "properties": {
  "sku": {"type": "keyword"}, "title": {"type": "text"}, "photo": {"properties": {
    "url": {"type": "keyword", "ignore_above": 8191}, "alt": {"type": "text"}}},
  "price": {"type": "float"}, "weight": {"type": "double"},
  "stock": {"type": "double"}, "added": {"type": "date"}, "raw": {"enabled": false},
  "offers": {"type": "nested", "properties": {
    "shop": {"type": "keyword"}, "price": {"type": "double"}}}}}"""
# Without a write to disk for each product that is put singly.
SETTINGS = '{"number_of_shards": 2, "number_of_replicas": 0, "translog.durability": "async"}'
NUMBERS = ("12.50", "1e3", "0.1234567890123456789012", "-0.0", "1E-7", "100", "3.10", "2.5e+2")
LARGE = ("12345678901234567890", "18446744073709551615", "0", "42")
TITLES = (
    "Red shoe",
    "Sch\\u00fche, gr\\u00fcn",
    "\u9774 \U0001f45f",
    'a \\"blue\\" \\/ bag',
    "\\ud83d\\udc5f",
)


class MeanColour:
    """Encode images by their mean colour, and texts by the colours they name."""

    name = "mean-colour"
    vocabulary = Vocabulary(("red", "green", "blue"))

    def encode_image(self, images: Sequence[Any]) -> Encoding:
        """Return one row an image."""
        return self._rows([np.asarray(each, float).mean(axis=(0, 1)) / 255 for each in images])

    def encode_text(self, texts: Sequence[str]) -> Encoding:
        """Return one row a text."""
        return self._rows([[t.lower().count(w) for w in self.vocabulary.terms] for t in texts])

    def _rows(self, rows: Sequence[Any]) -> Encoding:
        made = np.array(rows, np.float32).reshape(-1, 3)
        lexical = sparse.csr_array(made)
        norms = np.linalg.norm(made, axis=1, keepdims=True)
        patches = np.zeros(lexical.nnz, np.int16)
        return Encoding(lexical, patches, None, made / np.where(norms == 0, 1, norms))


def products(count: int, images: Sequence[str], seed: int = 3) -> Iterator[tuple[str, str]]:
    """Yield ids and the JSON text of products, as a shop's own program would write it."""
    chosen = random.Random(seed)  # noqa: S311 - not for secrets
    for number in range(count):
        price, weight = chosen.choice(NUMBERS), chosen.choice(NUMBERS)
        title = f"{chosen.choice(TITLES)} {number}"
        photo = f'{{"alt":null, "url" : "{images[number % len(images)]}"}}'
        if number % 50 == 49:
            photo = chosen.choice(("null", '{"alt":"none"}', '{"url":""}', "{}"))
        raw = f'{{"z":[{weight},[],{{}},[{price},null]],"a":{{"b.c":{weight},"":"\\u0000"}}}}'
        offers = "[]"
        if number % 3:
            offers = f'[{{"shop":"s{number % 7}","price":{price}}},{{"price":{weight} }}]'
        fields = [
            f'"sku":"{number:06}"',
            f'"title" : "{title}"',
            f'"photo":{photo}',
            f'"price":{price if not price.startswith("-") else "12.50"}',
            f'"weight": {weight}',
            f'"stock":{chosen.choice(LARGE)}',
            f'"added":"2024-0{1 + number % 9}-1{number % 10}T00:00:00Z"',
            f'"raw":{raw}',
            f'"offers":{offers}',
        ]
        chosen.shuffle(fields)
        space = chosen.choice(("", " ", "\t", "\n  " if number % 10 == 0 else ""))
        yield f"p/{number} \u00e9", "{" + space + f",{space}".join(fields) + space + "}"


def pointers(folder: Path, base: str, count: int = 60) -> list[str]:
    """Write small images; return URLs, paths and base64 of them, and some that are bad."""
    made = []
    for number in range(count):
        buffer = io.BytesIO()
        colour = (number * 4 % 256, 255 - number * 3 % 256, number * 7 % 256)
        Image.new("RGB", (32, 32), colour).save(buffer, "PNG")
        data = buffer.getvalue()
        (folder / f"{number}.png").write_bytes(data)
        encoded = base64.b64encode(data).decode()
        kinds = (f"{base}/{number}.png", f"{number}.png", f"data:image/png;base64,{encoded}")
        made.append(kinds[number % 3])
    (folder / "damaged.png").write_bytes(b"\x89PNG\r\n\x1a\n damaged")
    made[::20] = [f"{base}/gone.png", "damaged.png", "http://10.0.0.1/private.png"][
        : len(made[::20])
    ]
    return made


@contextmanager
def photos(folder: Path) -> Iterator[str]:
    """Serve a folder on the loopback address; yield the URL."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Shop:
    """The client of a shop that knows nothing of LexVLA: plain HTTP."""

    def __init__(self, url: str, index: str) -> None:
        self._connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=120)
        self._index = index

    def ask(self, method: str, path: str, body: str | None = None) -> bytes:
        """Send a request; return the body of the answer, which must not be an error."""
        headers = {"Content-Type": "application/json"}
        data = None if body is None else body.encode()
        self._connection.request(method, f"/{self._index}{path}", data, headers)
        answer = self._connection.getresponse()
        found = answer.read()
        if answer.status >= 300:
            raise RuntimeError(f"{method} {path}: {found.decode()[:500]}")
        return found

    def create(self, settings: str = SETTINGS) -> None:
        """Make the index."""
        self.ask("PUT", "", f'{{"settings": {settings}, "mappings": {MAPPING}}}')

    def put(self, name: str, text: str) -> None:
        """Store a product."""
        self.ask("PUT", f"/_doc/{quote(name, safe='')}", text)

    def source(self, name: str) -> str:
        """Return a product as the server has it."""
        return self.ask("GET", f"/_source/{quote(name, safe='')}").decode()


def others(text: str) -> tuple[str, dict[str, Any]]:
    """Return what stands before our fields, with the brace that closes it, and our fields."""
    at = min((text.find(f',"{name}":') for name in OWN if f',"{name}":' in text), default=-1)
    if at < 0:
        return text, {}
    ours = json.loads("{" + text[at + 1 :])
    unknown = ours.keys() - set(OWN)
    if unknown:
        raise AssertionError(f"fields of the shop come after ours: {unknown}")
    return text[:at], ours


def compare(shop: Shop, sent: dict[str, str], filled: bool) -> int:
    """Compare each product with what was sent; return how many have our fields."""
    count = 0
    for name, text in sent.items():
        found = shop.source(name)
        kept, ours = others(found)
        # The closing brace, and space before it, come after our fields.
        expected = text if not ours else text.rstrip()[:-1].rstrip()
        if kept != expected or bool(ours) > filled:
            raise AssertionError(f"{name}: sent {text!r}, found {found!r}")
        count += bool(ours)
    return count


def main(arguments: Sequence[str] | None = None) -> None:
    """Run it, and print what was compared."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--documents", type=int, default=20_000)
    parser.add_argument("--version", default=elasticsearch_server.VERSION)
    parser.add_argument("--model", action="store_true", help="the model that is shipped")
    options = parser.parse_args(arguments)
    url = os.environ.get(URL, "").rstrip("/")
    started = not url
    if started:
        url = elasticsearch_server.start(options.version, PORT, fresh=True)
    try:
        _measure(url, options.documents, _encoder(options.model))
    finally:
        if started:
            elasticsearch_server.stop(PORT)
            elasticsearch_server.forget(PORT)


def _encoder(is_model: bool) -> Encoder:
    if not is_model:
        return MeanColour()
    from lexvla import LexVLA

    return LexVLA.from_pretrained()


def _measure(url: str, count: int, encoder: Encoder) -> None:
    name = f"lexvla-benchmark-products-{os.getpid()}"
    address = Address.parse(f"elasticsearch+{url}/{name}")
    shop = Shop(url, name)
    with (
        tempfile.TemporaryDirectory() as folder,
        photos(Path(folder)) as base,
        connect(address) as client,
    ):
        images = PointedImages((), (urlsplit(base).netloc,), Path(folder))
        version = next(iter(client.nodes.info()["nodes"].values()))["version"]
        is_new = tuple(map(int, version.split(".")[:2])) >= (9, 2)
        excluded = ', "index.mapping.exclude_source_vectors": false}' if is_new else "}"
        try:
            shop.create(SETTINGS[:-1] + excluded)
            sent = dict(products(count, pointers(Path(folder), base)))
            for each, text in sent.items():
                shop.put(each, text)
            print(f"Elasticsearch {version}, {encoder.name}: {count:,} products sent")
            compare(shop, sent, filled=False)
            fields: dict[str, Any] = {
                "image_field": "photo.url",
                "lexical_field": "lex",
                "dense_field": "vec",
            }
            attached = attach(client, address, encoder, **fields)
            for run in ("first run", "second run"):
                begun = time.perf_counter()
                report = fill(client, address, attached, encoder, images, show_progress_bar=False)
                seconds = time.perf_counter() - begun
                attached = attach(client, address, encoder, **fields)
                told = f"{report.added:,} filled, {len(report.rejected):,} rejected"
                print(f"{run}: {told}, {seconds:.1f} s ({count / seconds:,.0f} a second)")
            have = compare(shop, sent, filled=True)
            print(f"byte for byte after attach: {len(sent):,} equal, {have:,} with our fields")
            begun = time.perf_counter()
            emptied = detach(client, address)
            print(f"detach: {emptied:,} emptied, {time.perf_counter() - begun:.1f} s")
            compare(shop, sent, filled=False)
            print(f"byte for byte after detach: {len(sent):,} equal")
        finally:
            client.indices.delete(index=name, ignore_unavailable=True)


if __name__ == "__main__":
    main()
