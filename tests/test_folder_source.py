"""Which files of a folder are listed, under which ids, and what is said of the others."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexer_fakes import ColourEncoder, documents, encode
from ingest_fakes import new_index, picture
from lexvla.errors import InputError
from lexvla_indexer import index_source
from lexvla_indexer.elastic.elasticsearch_product import ELASTICSEARCH
from lexvla_indexer.elastic.writer import check_rows
from lexvla_indexer.folder_source import FolderSource
from lexvla_indexer.item_source import ListedItem, UnlistedItem
from lexvla_indexer.path_ids import id_of_path, path_of_id, path_of_text, text_of_path
from lexvla_indexer.reading import Reading
from lexvla_indexer.roots import Roots
from lexvla_indexer.sources import open_item_source


def touch(top: Path, *names: str) -> Path:
    for name in names:
        path = top / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return top


def listed(top: Path, **reading: object) -> list[str]:
    return [
        entry.document.id
        for entry in FolderSource(top, Reading(**reading)).entries()
        if isinstance(entry, ListedItem)
    ]


def hidden(source: FolderSource) -> list[tuple[str, str]]:
    entries = [entry for entry in source.entries() if isinstance(entry, UnlistedItem)]
    assert all(entry.id is None for entry in entries)
    return [(Path(entry.reject.item).name, entry.reject.rule) for entry in entries]


# Ids

PARTS = st.text(
    st.characters(codec="utf-8", exclude_characters="/\0") | st.sampled_from("%0A\n\udc80\udcff"),
    min_size=1,
).filter(lambda part: part not in (".", ".."))


@given(st.lists(PARTS, min_size=1, max_size=3))
def test_ids_of_paths_are_reversible(parts: list[str]) -> None:
    # Bytes that are no UTF-8, next to each other, may be read as a character: so will any path be.
    text = "/".join(parts).encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")
    path = Path(text)
    name = id_of_path(path)
    name.encode()
    assert not any(ord(c) < 32 or ord(c) == 127 for c in name)
    assert path_of_id(name) == path


@given(st.lists(PARTS, min_size=2, max_size=2, unique=True))
def test_no_two_paths_share_an_id(parts: list[str]) -> None:
    encoded = [part.encode("utf-8", "surrogateescape") for part in parts]
    if encoded[0] != encoded[1]:
        assert len({id_of_path(Path(os.fsdecode(each))) for each in encoded}) == 2


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("a b/ä.jpg", "a b/ä.jpg"),
        ("100%.jpg", "100%.jpg"),
        ("a%20b.jpg", "a%2520b.jpg"),
        ("a%2ab.jpg", "a%2ab.jpg"),
        ("a%00b.jpg", "a%00b.jpg"),
        ("a\tb\n.jpg", "a%09b%0A.jpg"),
        ("\udcff.jpg", "%FF.jpg"),
        ("\x85.jpg", "\x85.jpg"),
    ],
)
def test_ids_of_some_paths(path: str, name: str) -> None:
    assert id_of_path(Path(path)) == name
    assert path_of_id(name) == Path(path)


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("/a%20b\n.jpg", "/a%20b\n.jpg"),
        ("/a b/%FF\udcff.jpg", "file:///a%20b/%25FF%FF.jpg"),
    ],
)
def test_a_path_is_an_address_only_if_it_is_no_text(path: str, text: str) -> None:
    assert text_of_path(Path(path)) == text
    assert path_of_text(text) == Path(path)


def test_an_index_takes_every_name_of_a_file(tmp_path: Path) -> None:
    deep = "/".join(["d" * 200] * 4)
    names = ["a\nb.png", "tab\t.png", "\udcff\udcfe.png", "50%.png", "%41.png", f"{deep}/long.png"]
    for name in names:
        picture(tmp_path / "p" / "x.png").rename(touch(tmp_path / "p", name) / name)
    encoder = ColourEncoder()
    with new_index(tmp_path / "i.lex") as index:
        report = index_source(tmp_path / "p", index, encoder)
        assert (report.added, report.rejected) == (len(names), [])
        ids = index.search(encoder.encode_text(["red"]), k=10)[0].ids
        assert sorted(map(path_of_id, ids)) == sorted(map(Path, names))
        roots = Roots(index)
        for document in index.fetch(ids).documents:
            path = path_of_text(roots.locate(document))
            assert path == tmp_path / "p" / path_of_id(document.id)
            assert path.is_file()


def test_only_elasticsearch_refuses_a_long_id() -> None:
    rows = encode([{0: 1.0}])
    check_rows(documents(["é" * 256]), rows, ELASTICSEARCH)
    with pytest.raises(InputError, match="Elasticsearch takes ids of at most 512 bytes, not 514"):
        check_rows(documents(["é" * 257]), rows, ELASTICSEARCH)


def test_what_one_engine_refuses_is_rejected_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.png", "b.png", "c.png"):
        picture(tmp_path / "p" / name)
    with new_index(tmp_path / "i.lex") as index:

        def refuse(documents, encoding, vocabulary):
            if any(document.id == "b.png" for document in documents):
                raise InputError("b.png", "is not for this engine")

        monkeypatch.setattr(index, "_check_storable", refuse)
        report = index_source(tmp_path / "p", index, ColourEncoder())
        assert (report.added, index.count()) == (2, 2)
        assert [(each.item, each.rule) for each in report.rejected] == [
            ("b.png", "is not for this engine")
        ]


# What is left out


def test_what_is_no_image_is_counted_by_suffix(tmp_path: Path) -> None:
    top = touch(tmp_path / "p", "a.PSD", "b.psd", "c.txt", "README", "d.jfif", "e.JPE", "f.heic")
    source = FolderSource(top, Reading())
    assert len(list(source.entries())) == 3
    assert source.ignored == {".psd": 2, ".txt": 1, "": 1}
    list(source.entries())
    assert source.ignored[".psd"] == 2


TREE = [
    *("a.jpg", "b/c.jpg", ".x.jpg", ".thumbnails/t.jpg", "b/@eaDir/t.jpg", "#recycle/r.jpg"),
    *("__MACOSX/._a.jpg", "b/old/o.jpg", "b/keep.jpg"),
]


@pytest.mark.parametrize(
    ("reading", "expected", "excluded"),
    [
        (
            {},
            ["a.jpg", "b/c.jpg", "b/keep.jpg", "b/old/o.jpg"],
            {".*": 2, "@eaDir/": 1, "\\#recycle/": 1, "__MACOSX/": 1},
        ),
        ({"default_excludes": False}, sorted(TREE), {}),
        (
            {"exclude": ("old/", "!.x.jpg")},
            [".x.jpg", "a.jpg", "b/c.jpg", "b/keep.jpg"],
            {".*": 1, "@eaDir/": 1, "\\#recycle/": 1, "__MACOSX/": 1, "old/": 1},
        ),
        (
            {"exclude": ("/b/*", "!keep.jpg"), "default_excludes": False},
            [name for name in sorted(TREE) if name == "b/keep.jpg" or not name.startswith("b/")],
            {"/b/*": 3},
        ),
        ({"exclude": ("*.jpg",)}, [], None),
    ],
)
def test_patterns_exclude_files_and_folders(
    tmp_path: Path, reading: dict, expected: list[str], excluded: dict | None
) -> None:
    top = touch(tmp_path / "p", *TREE)
    source = FolderSource(top, Reading(**reading))
    found = [entry.document.id for entry in source.entries() if isinstance(entry, ListedItem)]
    assert sorted(found) == sorted(expected)
    if excluded is not None:
        assert source.excluded == excluded


def test_a_bad_pattern_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a pattern"):
        FolderSource(tmp_path, Reading(exclude=("!",)))


def test_patterns_for_a_manifest_are_refused(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text("")
    for reading in (Reading(exclude=("*.gif",)), Reading(default_excludes=False)):
        with pytest.raises(InputError, match="files are excluded only from folders"):
            open_item_source(tmp_path / "m.jsonl", reading=reading)
    open_item_source(tmp_path / "m.jsonl", reading=Reading(exif=False))


# Links


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    top = touch(tmp_path / "p", "z/a.jpg")
    touch(tmp_path / "else", "b.jpg", "deep/c.jpg")
    (top / "again").symlink_to(top / "z")
    (top / "loop").symlink_to(top)
    (top / "y").symlink_to(tmp_path / "else")
    (tmp_path / "else" / "back").symlink_to(top)
    (tmp_path / "else" / "more").symlink_to(tmp_path / "far")
    touch(tmp_path / "far", "d.jpg")
    source = FolderSource(top, Reading())
    assert listed(top) == ["z/a.jpg", "y/b.jpg", "y/deep/c.jpg", "y/more/d.jpg"]
    assert hidden(source) == []
    (tmp_path / "link").symlink_to(top)
    assert listed(tmp_path / "link") == listed(top)


def test_a_link_to_nothing_may_hide_a_folder(tmp_path: Path) -> None:
    top = touch(tmp_path / "p", "a.jpg")
    (top / "disk").symlink_to(tmp_path / "unmounted")
    assert hidden(FolderSource(top, Reading())) == [("disk", "the link leads to nothing")]
