from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_fakes import BROKEN, make_loader, members, png, write_tar
from lexvla.data.pairs import Pair, Skipped
from lexvla.data.webdataset_shards import WebDatasetShards, expand_braces
from lexvla.errors import InputError


def read(source: WebDatasetShards, number: int = 0) -> list[Pair | str]:
    """Return pairs, and the words of errors."""
    found: list[Pair | str] = []
    for record in source.read_shard(number):
        try:
            found.append(record())
        except InputError as error:
            found.append(f"{error.item}: {error.rule}")
    return found


def test_braces() -> None:
    assert expand_braces("a") == ["a"]
    assert expand_braces("s-{008..010}.tar") == ["s-008.tar", "s-009.tar", "s-010.tar"]
    assert expand_braces("{b,a}/{9..10}") == ["b/9", "b/10", "a/9", "a/10"]
    assert expand_braces("{2..0}") == ["2", "1", "0"]
    for pattern in ("{0..1000000}", "{0..9999}{0..9999}"):
        with pytest.raises(InputError, match="names more than 1000000 shards"):
            expand_braces(pattern)


def test_records(tmp_path: Path) -> None:
    meta = json.dumps({"caption": "of json", "label": "x", "path": ["a", "b"]}).encode()
    path = write_tar(
        tmp_path / "a.tar",
        [
            ("__index__", b"no key and extension"),
            ("in/000001.PNG", png(1)),
            ("in/000001.txt", b"\xef\xbb\xbf of text \n"),
            ("in/000001.json", meta),
            ("in/000002.json", meta),
            ("in/000002.jpg", png(2)),
            ("in/000003.png", png(3)),
            ("in/000003.txt", b"three"),
            ("in/000003.seg.png", b"another kind"),
            ("in/000003.cls", b"7\n"),
        ],
    )
    plain, named = WebDatasetShards(path), WebDatasetShards(path, "caption", "label", "path")
    assert read(plain) == [
        Pair("a.tar/in/000001", png(1), ("of text",)),
        Pair("a.tar/in/000002", png(2), ("of json",)),
        Pair("a.tar/in/000003", png(3), ("three",), "7"),
    ]
    assert read(named)[:2] == [
        Pair("a.tar/in/000001", png(1), ("of text",), "x", ("a", "b")),
        Pair("a.tar/in/000002", png(2), ("of json",), "x", ("a", "b")),
    ]


def test_bad_records_do_not_stop_a_shard(tmp_path: Path) -> None:
    path = write_tar(
        tmp_path / "a.tar",
        [
            ("1.jpg", png(1)),
            ("2.txt", b"no image"),
            ("3.jpg", png(3)),
            ("3.txt", b" "),
            ("4.jpg", png(4)),
            ("4.txt", b"\xff"),
            ("5.jpg", png(5)),
            ("5.json", b"{"),
            ("6.jpg", png(6)),
            ("6.json", b"[]"),
            ("7.jpg", png(7)),
            ("7.txt", b"seven"),
            ("1.jpg", png(1)),
            ("1.txt", b"one"),
            ("8.jpg", BROKEN),
            ("8.jpg", png(8)),
            ("8.txt", b"eight"),
        ],
    )
    assert [
        str(each)[:60] if isinstance(each, str) else each.id for each in read(source(path))
    ] == [
        "a.tar/1: has no caption: no .txt, and no 'caption' in a .jso",
        "a.tar/2: has no image; it has txt",
        "a.tar/3: has no text",
        "a.tar/4: cannot be read ('utf-8' codec can't decode byte 0xf",
        "a.tar/5: cannot be read (Expecting property name enclosed in",
        "a.tar/6: the .json must be a JSON object",
        "a.tar/7",
        "a.tar/1: the key occurs twice in this shard",
        "a.tar/8: has no caption: no .txt, and no 'caption' in a .jso",
        "a.tar/8: the key occurs twice in this shard",
    ]


def source(path: Path) -> WebDatasetShards:
    return WebDatasetShards(path)


def test_a_truncated_tar_gives_what_is_whole(tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "whole.tar", members((0, 1))).read_bytes()
    path = tmp_path / "cut.tar"
    good = ["cut.tar/000000", "cut.tar/000001"]
    # Of each record: a header and a block for the image, the text and the JSON.
    for length, count, rule in (
        (12 * 512 + 1024, 2, None),
        (12 * 512, 2, "the tar is truncated or damaged at byte 6144"),
        (12 * 512 + 100, 2, "the tar is truncated or damaged at byte 6144"),
        (11 * 512 + 3, 2, "the tar is truncated in 000001.json"),
        (7 * 512 + 3, 1, "the tar is truncated in 000001.png"),
        (6 * 512, 1, "the tar is truncated or damaged at byte 3072"),
        (0, 0, "the tar is damaged or is not a plain tar (empty file)"),
        (100, 0, "the tar is damaged or is not a plain tar (truncated header)"),
    ):
        path.write_bytes(whole[:length])
        found = read(source(path))
        assert [pair.id for pair in found if isinstance(pair, Pair)] == good[:count]
        errors = [each for each in found if isinstance(each, str)]
        assert errors == ([f"cut.tar: {rule}"] if rule else [])


def test_a_loader_lists_the_truncated_shard(tmp_path: Path) -> None:
    for number in range(2):
        write_tar(tmp_path / f"{number}.tar", members((4 * number, 4 * number + 1)))
    path = tmp_path / "1.tar"
    path.write_bytes(path.read_bytes()[: 11 * 512])
    loader = make_loader(WebDatasetShards(tmp_path), shuffle=False)
    (batch,) = loader
    assert batch.texts == ["text 0a", "text 1a", "text 4a", "text 5a"]
    assert loader.skipped.first == [Skipped("1.tar", "the tar is truncated in 000005.json", 0)]


def test_a_damaged_header_ends_a_shard_with_an_error(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", members((0, 1)))
    data = bytearray(path.read_bytes())
    data[6 * 512 : 6 * 512 + 40] = b"x" * 40
    path.write_bytes(data)
    pair, error = read(source(path))
    assert isinstance(pair, Pair)
    assert error == "a.tar: the tar is truncated or damaged at byte 3072"
    path.write_bytes(b"\x1f\x8b" + bytes(range(256)) * 4)
    (error,) = read(source(path))
    assert str(error).startswith("a.tar: the tar is damaged or is not a plain tar")


def test_names_of_shards(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in (1, 0):
            write_tar(tmp_path / name / f"{number}.tar", members([number]))
    first = WebDatasetShards(tmp_path / "a" / "{1..0}.tar")
    assert [path.name for path in first.paths] == ["1.tar", "0.tar"]
    assert [path.name for path in WebDatasetShards(tmp_path / "a" / "*.tar").paths] == [
        "0.tar",
        "1.tar",
    ]
    assert WebDatasetShards(tmp_path / "a").paths == WebDatasetShards(tmp_path / "a/?.tar").paths
    assert first.fingerprint != WebDatasetShards(tmp_path / "a").fingerprint
    both = WebDatasetShards([tmp_path / "a", str(tmp_path / "b")])
    pair = read(both, 3)[0]
    assert isinstance(pair, Pair)
    assert pair.id == f"{tmp_path}/b/1.tar/000001"
    for bad, rule in (
        ([tmp_path / "a", tmp_path / "a/0.tar"], "the shard is named twice"),
        (tmp_path / "a/{0..2}.tar", "no such shard"),
        (tmp_path / "c*", "no such shard"),
        (tmp_path / "**.tar", "no such shard|not a valid path or pattern"),
        ([], "names no shards"),
    ):
        with pytest.raises(InputError, match=rule):
            WebDatasetShards(bad)
