"""Manifests as lines of JSON, rows of CSV and rows of parquet."""

from __future__ import annotations

import datetime
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from indexer_fakes import ColourEncoder
from ingest_fakes import manifest, new_index, picture
from lexvla.errors import InputError, OptionalDependencyError
from lexvla_indexer import Document, index_source
from lexvla_indexer.item_source import ListedItem, UnlistedItem
from lexvla_indexer.sources import open_item_source

HEADER = "id,image,text,year:int,price:float,seen:bool,tags:list,dc:title"


def documents(path: Path, text_field: str | None = None) -> list[Document]:
    entries = list(open_item_source(path, text_field).entries())
    assert all(isinstance(entry, ListedItem) for entry in entries), entries
    return [entry.document for entry in entries if isinstance(entry, ListedItem)]


def rejects(path: Path) -> list[tuple[str, str, str | None]]:
    """Return where, why and the id of what is rejected."""
    entries = open_item_source(path).entries()
    return [(e.reject.where, e.reject.rule, e.id) for e in entries if isinstance(e, UnlistedItem)]


def csv_file(folder: Path, *lines: str, encoding: str = "utf-8") -> Path:
    path = folder / "items.csv"
    path.write_bytes("\n".join([*lines, ""]).encode(encoding, "surrogateescape"))
    return path


def parquet_file(folder: Path, **columns: Any) -> Path:
    pyarrow = pytest.importorskip("pyarrow", reason="needs pyarrow: pip install 'lexvla[parquet]'")
    from pyarrow import parquet

    path = folder / "items.parquet"
    parquet.write_table(pyarrow.table(columns), path)
    return path


def test_null_means_absent(tmp_path: Path) -> None:
    nothing = {"image": None, "text": "red", "metadata": {"a": None, "b": 1, "c": None}}
    source = manifest(
        tmp_path / "m", {"id": "x", **nothing}, {"id": "y", "text": "red", "metadata": None}
    )
    assert documents(source) == [
        Document("x", text="red", metadata={"b": 1}),
        Document("y", text="red"),
    ]
    source = manifest(tmp_path / "m", {"id": None, "text": "red"})
    assert rejects(source) == [(f"{source}:1", "has no id", None)]


def test_cells_have_the_types_of_their_columns(tmp_path: Path) -> None:
    source = csv_file(
        tmp_path,
        f"\ufeff{HEADER}",
        'a,x/a.png,"a red, ""warm""',
        'heart",2024,9.50,TRUE,love; red ;,007',
        "",
        "b,,blue,,,,,",
        "c,../c.png,,-1,1e3,false,,",
    )
    first = {"year": 2024, "price": 9.5, "seen": True, "tags": ["love", "red"], "dc:title": "007"}
    assert documents(source) == [
        Document("a", "x/a.png", 'a red, "warm"\nheart', first),
        Document("b", "", "blue"),
        Document("c", "../c.png", "", {"year": -1, "price": 1000.0, "seen": False}),
    ]
    images = [entry.image for entry in open_item_source(source).entries()]
    assert images == [tmp_path / "x" / "a.png", None, tmp_path.parent / "c.png"]
    assert documents(csv_file(tmp_path, "id,caption,n:int", "a,red,1"), "caption") == [
        Document("a", text="red", metadata={"n": 1})
    ]
    assert documents(csv_file(tmp_path, "id,title,tags:list", "a,red,b; c"), "metadata.tags") == [
        Document("a", text="b c", metadata={"title": "red", "tags": ["b", "c"]})
    ]


def test_columns_without_a_name_are_left_out(tmp_path: Path) -> None:
    source = csv_file(tmp_path, ",id,text,,", "0,a,red,,", "1,b,blue,x,")
    assert documents(source) == [Document("a", text="red"), Document("b", text="blue")]


@pytest.mark.parametrize("image", ["https://example.org/a.png", "file:///a.png", "data:image/png;"])
def test_an_image_is_a_path_not_a_url(tmp_path: Path, image: str) -> None:
    source = manifest(tmp_path / "m", {"id": "a", "image": image})
    assert rejects(source) == [(f"{source}:1", "image must be the path of a file, not a URL", "a")]


def test_a_bad_list_is_told_by_what_it_holds(tmp_path: Path) -> None:
    lines = [{"id": "a", "text": "red", "metadata": {"m": bad}} for bad in (["x", 1], [None])]
    source = manifest(tmp_path / "m", *lines)
    rule = "metadata 'm' must be a string, number, boolean, date or list of strings, not"
    assert [why for _, why, _ in rejects(source)] == [
        f"{rule} a list with int",
        f"{rule} a list with null",
    ]


def test_bad_rows_are_rejected_by_their_line(tmp_path: Path) -> None:
    source = csv_file(
        tmp_path,
        HEADER,
        "a,,red,x,,,,",
        "b,,red,,inf,,,",
        "c,,red,,,yes,,",
        "d,,red",
        ",,red,,,,,",
        'e,,"red"x,,,,,',
        "f,,\udcff,,,,,",
        "g,,red,,,,,",
        "h,,red,2024_06,,,,",
        "i,,red,,9_50,,,",
    )
    assert rejects(source) == [
        (f"{source}:2", "year must be a whole number, not 'x'", "a"),
        (f"{source}:3", "price must be a finite number, not 'inf'", "b"),
        (f"{source}:4", "seen must be true or false, not 'yes'", "c"),
        (f"{source}:5", "has 3 cells, not 8 as the first line", None),
        (f"{source}:6", "has no id", None),
        (f"{source}:7", "is not CSV (',' expected after '\"')", None),
        (f"{source}:8", "its address, text and metadata must be valid Unicode", "f"),
        (f"{source}:10", "year must be a whole number, not '2024_06'", "h"),
        (f"{source}:11", "price must be a finite number, not '9_50'", "i"),
    ]
    with new_index(tmp_path / "i.lex") as index:
        report = index_source(source, index, ColourEncoder())
        assert (report.added, len(report.rejected)) == (1, 9)


@pytest.mark.parametrize(
    ("lines", "rule"),
    [
        ((), "must have a column 'id'; its columns are none"),
        (("id;text", "a;red"), "must have a column 'id'; its columns are 'id;text'"),
        (("id,a,a:int", "x,1,2"), "two columns 'a'"),
    ],
)
def test_a_header_that_cannot_be_used_is_refused_at_once(
    tmp_path: Path, lines: tuple[str, ...], rule: str
) -> None:
    with pytest.raises(InputError, match=rule):
        open_item_source(csv_file(tmp_path, *lines))


def test_a_text_field_that_a_table_does_not_have_is_refused(tmp_path: Path) -> None:
    source = csv_file(tmp_path, "id,image,caption", "a,a.png", "b,b.png,red")
    for field in ("captoin", "caption,metadata.captoin"):
        with pytest.raises(
            InputError, match="no column 'captoin'; its columns are 'id', 'image', "
        ):
            open_item_source(source, field)
    assert isinstance(list(open_item_source(source, "caption").entries())[1], ListedItem)
    source = csv_file(tmp_path, "id,image", "a,a.png")  # nobody asked for a text
    assert documents(source) == [Document("a", "a.png")]


@settings(deadline=None, max_examples=40)
@given(
    rows=st.lists(
        st.tuples(
            st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), min_size=1),
            st.integers() | st.none(),
        ),
        max_size=5,
    )
)
def test_a_table_and_lines_of_json_give_the_same(rows: list, tmp_path_factory: Any) -> None:
    import csv

    folder = tmp_path_factory.mktemp("same")
    rows = [(text, number) for text, number in rows if text.strip()]
    with (folder / "items.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "text", "n:int"])
        writer.writerows([(f"d{i}", *row) for i, row in enumerate(rows)])
    lines = [
        {"id": f"d{i}", "text": text, "metadata": {"n": number}}
        for i, (text, number) in enumerate(rows)
    ]
    assert documents(folder / "items.csv") == documents(manifest(folder / "m", *lines))


def test_rows_of_parquet(tmp_path: Path) -> None:
    source = parquet_file(
        tmp_path,
        id=["a", "b", None, "d"],
        image=["a.png", None, None, None],
        text=["red", "blue", "red", None],
        year=[2024, None, 1, 1],
        tags=[["x", "y"], None, [], None],
        taken=[datetime.datetime(2024, 6, 1, 12), None, None, None],
        day=[datetime.date(2024, 6, 1), None, None, None],
        price=[Decimal("9.50"), None, None, None],
        metadata=[{"nested": True}, None, None, None],
    )
    kept = [e.document for e in open_item_source(source).entries() if isinstance(e, ListedItem)]
    metadata = {"nested": True, "year": 2024, "tags": ["x", "y"], "price": 9.5}
    metadata |= {"taken": "2024-06-01T12:00:00", "day": "2024-06-01"}
    assert kept == [Document("a", "a.png", "red", metadata), Document("b", text="blue")]
    assert rejects(source) == [
        (f"{source}:3", "has no id", None),
        (f"{source}:4", "has neither an image nor a text (in 'text')", "d"),
    ]
    picture(tmp_path / "a.png")
    with new_index(tmp_path / "i.lex") as index:
        assert index_source(source, index, ColourEncoder()).added == 2
        assert index_source(source, index, ColourEncoder()).skipped == 2


def test_values_of_parquet_become_those_of_documents(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="needs pyarrow: pip install 'lexvla[parquet]'")
    noon = datetime.datetime(2024, 6, 1, 12, tzinfo=datetime.UTC)
    nanoseconds = pyarrow.array([1_717_243_200_123_456_789, None, None], pyarrow.timestamp("ns"))
    source = parquet_file(
        tmp_path,
        id=[7, 8, 9],
        text=["red"] * 3,
        zoned=pyarrow.array([noon] * 3, pyarrow.timestamp("us", "Europe/Berlin")),
        exact=nanoseconds,
        days=[[datetime.date(2024, 6, 1)], None, None],
        late=pyarrow.array([None, 2**60, None], pyarrow.timestamp("us")),
        metadata=pyarrow.array(
            [[("k", "v")], None, []], pyarrow.map_(pyarrow.string(), pyarrow.string())
        ),
    )
    kept = [e.document for e in open_item_source(source).entries() if isinstance(e, ListedItem)]
    moment = {"zoned": "2024-06-01T12:00:00+00:00"}
    first = {"k": "v", **moment, "exact": "2024-06-01T12:00:00.123456", "days": ["2024-06-01"]}
    assert kept == [Document("7", text="red", metadata=first), Document("9", "", "red", moment)]
    [(where, rule, name)] = rejects(source)
    assert (where, name) == (f"{source}:2", "8")
    assert rule.startswith("late cannot be read (")


def test_a_parquet_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="must have a column 'id'; its columns are 'name'"):
        open_item_source(parquet_file(tmp_path, name=["a"]))
    (tmp_path / "items.parquet").write_bytes(b"PAR1 and nothing more")
    with pytest.raises(InputError, match="is not a readable parquet file"):
        open_item_source(tmp_path / "items.parquet")


def test_parquet_needs_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "items.parquet").touch()
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(OptionalDependencyError, match=r"lexvla\[parquet\]"):
        open_item_source(tmp_path / "items.parquet")


def test_null_means_absent_over_http(tmp_path: Path) -> None:
    served = pytest.importorskip("api_fakes").served
    lines = [
        {"id": "x", "text": "red", "image": None, "uri": None, "metadata": {"a": None, "b": 1}},
        {"id": "y", "text": "red", "metadata": None},
        {"id": "z", "text": None},
        {"id": "bad", "text": "red", "metadata": {"a": {"b": 1}, "c": ["x", None]}},
    ]
    with served(tmp_path) as client:
        body = "\n".join(map(json.dumps, lines))
        headers = {"Content-Type": "application/x-ndjson"}
        answer = client.put("/v1/documents", content=body, headers=headers).json()
        rule = "must be a string, a finite number, a boolean or a list of strings"
        assert answer == {
            "indexed": 2,
            "rejected": 2,
            "errors": [
                {
                    "line": 3,
                    "id": "z",
                    "detail": "line: a document needs a text, an image or an image_url",
                },
                {"line": 4, "id": "bad", "detail": f"metadata.a: {rule}; metadata.c: {rule}"},
            ],
        }
        stored = client.get("/v1/documents/x").json()
        kept = {"id": "x", "uri": "", "text": "red", "metadata": {"b": 1}}
        assert stored.items() >= kept.items()
