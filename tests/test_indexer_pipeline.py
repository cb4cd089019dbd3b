from __future__ import annotations

import json
import multiprocessing
import os
import signal
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from indexer_fakes import ColourEncoder
from ingest_fakes import manifest, picture
from lexvla.errors import IndexLockedError, InputError, VocabularyMismatchError
from lexvla.vocabulary import Vocabulary
from lexvla_indexer import EmbeddedIndex, index_source, open_index, pipeline
from lexvla_indexer.roots import Roots


@pytest.fixture
def encoder() -> ColourEncoder:
    return ColourEncoder()


@pytest.fixture
def index(tmp_path: Path, encoder: ColourEncoder) -> Iterator[EmbeddedIndex]:
    path = tmp_path / "i.lex"
    with EmbeddedIndex(path, True, encoder.vocabulary, encoder.name) as made:
        yield made


def ids(index: EmbeddedIndex, word: str, encoder: ColourEncoder) -> list[str]:
    return index.search(encoder.encode_text([word]), k=100)[0].ids


def rejects(index: EmbeddedIndex) -> list[dict[str, str]]:
    assert index.directory is not None
    lines = (index.directory / "rejected.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


# Sources


def test_a_folder_of_images(tmp_path, index, encoder):
    top = tmp_path / "photos"
    picture(top / "b.PNG")
    picture(top / "a" / "ä ö.jpg", "red")
    picture(top / "a" / "z.tiff", "blue")
    for hidden in (top / ".hidden" / "x.png", top / ".x.png"):
        picture(hidden)
    (top / "notes.txt").write_text("not an image")
    report = index_source(top, index, encoder)
    assert (report.added, report.skipped, report.ignored, report.rejected) == (
        3,
        0,
        {".txt": 1},
        [],
    )
    assert report.excluded == {".*": 2}
    assert report.rejects_path == index.directory / "rejected.jsonl"
    assert ids(index, "red", encoder) == ["b.PNG", "a/ä ö.jpg"]
    assert ids(index, "blue", encoder) == ["a/z.tiff"]
    fetched = index.fetch(["a/z.tiff"])
    assert fetched.documents[0].uri == "a/z.tiff"
    assert fetched.encoding.patches.tolist() == [0]


def test_files_are_found_from_anywhere(tmp_path, index, encoder, monkeypatch):
    picture(tmp_path / "photos" / "a.png")
    monkeypatch.chdir(tmp_path)
    index_source("photos", index, encoder)
    (document,) = index.fetch(["a.png"]).documents
    monkeypatch.chdir("/")
    assert Roots(index).locate(document) == str(tmp_path / "photos" / "a.png")


def test_a_manifest_of_images_and_texts(tmp_path, index, encoder):
    picture(tmp_path / "m" / "images" / "a.png", "blue")
    source = manifest(
        tmp_path / "m",
        {"id": "x/1", "image": "images/a.png", "text": "red", "metadata": {"year": 2020}},
        b"",
        {"id": "x/2", "text": "blue blue", "image": None, "metadata": None, "more": 1},
        {"id": "x/3", "text": "no known word"},
    )
    report = index_source(source, index, encoder)
    assert (report.added, report.empty, report.rejected) == (3, 1, [])
    assert ids(index, "blue", encoder) == ["x/2", "x/1"]  # the image is encoded, not its text
    assert ids(index, "red", encoder) == []
    fetched = index.fetch(["x/1", "x/2", "x/3"])
    assert [d.text for d in fetched.documents] == ["red", "blue blue", "no known word"]
    assert [d.metadata for d in fetched.documents] == [{"year": 2020}, {}, {}]
    assert [d.uri for d in fetched.documents] == ["images/a.png", "", ""]
    paths = [str(tmp_path / "m" / "images" / "a.png"), "", ""]
    assert list(map(Roots(index).locate, fetched.documents)) == paths
    assert fetched.encoding.patches.tolist() == [0, -1]


def huge_png() -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def test_bad_lines_are_rejected_and_the_rest_goes_on(tmp_path, index, encoder):
    folder = tmp_path / "m"
    good = picture(folder / "good.png").read_bytes()
    (folder / "empty.png").touch()
    (folder / "cut.png").write_bytes(good[: len(good) // 2])
    (folder / "text.png").write_text("hello")
    (folder / "huge.png").write_bytes(huge_png())
    bad: list[tuple[Any, str, str]] = [
        (b"{no json", "line 2", "is not JSON"),
        (b"[" * 100_000, "line 3", "is not JSON"),
        (b'"\xff"', "line 4", "is not JSON"),
        ([1], "line 5", "must be a JSON object"),
        ({"text": "red"}, "line 6", "has no id"),
        ({"id": 7, "text": "red"}, "7", "must be a string"),
        ({"id": "a\nb", "text": "red"}, "a\nb", "control characters"),
        ({"id": "é" * 8193, "text": "red"}, "é" * 197 + "...", "at most 16,384 bytes"),
        ({"id": "ok", "text": "red"}, "ok", "same id"),
        ({"id": "none"}, "none", "neither an image nor a text"),
        ({"id": "blank", "text": " \n"}, "blank", "neither an image nor a text"),
        ({"id": "i", "image": 5}, "i", "image must be a string"),
        ({"id": "t", "text": ["red"]}, "t", "text must be a string"),
        ({"id": "m", "text": "red", "metadata": [1]}, "m", "metadata must be an object"),
        ({"id": "n", "text": "red", "metadata": {"a": {"b": 1}}}, "n", "metadata 'a' must be"),
        (b'{"id": "nan", "text": "red", "metadata": {"a": NaN}}', "nan", "metadata 'a' is nan"),
        (b'{"id": "u", "text": "\\ud800"}', "u", "Unicode"),
        ({"id": "gone", "image": "gone.png"}, "gone", "no such file"),
        ({"id": "null", "image": "a\0b.png"}, "null", "not a valid path"),
        ({"id": "folder", "image": "."}, "folder", "directory"),
        ({"id": "empty", "image": "empty.png"}, "empty", "empty"),
        ({"id": "cut", "image": "cut.png"}, "cut", "truncated"),
        ({"id": "text", "image": "text.png"}, "text", "not an image"),
        ({"id": "huge", "image": "huge.png"}, "huge", "pixels"),
    ]
    lines = [line for line, _, _ in bad]
    last = {"id": "last", "image": "good.png"}
    source = manifest(folder, {"id": "ok", "text": "red red"}, *lines, last)
    report = index_source(source, index, encoder, batch_size=3)
    assert ids(index, "red", encoder) == ["ok", "last"]
    assert report.added == 2
    by_line = sorted(report.rejected, key=lambda r: int(r.where.rpartition(":")[2]))
    for number, (reject, (_, item, rule)) in enumerate(zip(by_line, bad, strict=True), start=2):
        assert (reject.where, reject.item) == (f"{source}:{number}", item)
        assert rule in reject.rule
    assert rejects(index) == [vars(reject) for reject in report.rejected]


def test_bad_files_of_a_folder_are_rejected(tmp_path, index, encoder):
    picture(tmp_path / "p" / "good.png")
    (tmp_path / "p" / "bad.jpg").touch()
    (tmp_path / "p" / "new\nline.png").touch()
    os.mkfifo(tmp_path / "p" / "pipe.png")
    (tmp_path / "p" / os.fsdecode(b"\xff.png")).touch()
    report = index_source(tmp_path / "p", index, encoder)
    assert report.added == 1
    assert sorted(Path(r["where"]).name for r in rejects(index)) == [
        "%FF.png",
        "bad.jpg",
        "new%0Aline.png",
        "pipe.png",
    ]


def test_sources_that_are_none(tmp_path, index, encoder):
    with pytest.raises(InputError, match="no such file or folder"):
        index_source(tmp_path / "gone", index, encoder)
    with pytest.raises(InputError, match="must be a folder, a manifest"):
        index_source(picture(tmp_path / "a.png"), index, encoder)
    with pytest.raises(ValueError, match="batch_size"):
        index_source(tmp_path, index, encoder, batch_size=0)


# Resume


def test_what_is_there_and_unchanged_is_skipped(tmp_path, index, encoder):
    picture(tmp_path / "m" / "a.png")
    picture(tmp_path / "m" / "b.png")
    lines = [
        {"id": "a", "image": "a.png", "metadata": {"x": 1, "y": 2}},
        {"id": "b", "image": "b.png"},
        {"id": "t", "text": "red"},
    ]
    source = manifest(tmp_path / "m", *lines)
    index_source(source, index, encoder)
    report = index_source(source, index, encoder)
    assert (report.added, report.skipped) == (0, 3)
    picture(tmp_path / "m" / "b.png", "blue", (5, 5))
    manifest(tmp_path / "m", lines[0], lines[1], {"id": "t", "text": "blue"})
    report = index_source(source, index, encoder)
    assert (report.added, report.skipped) == (2, 1)
    assert ids(index, "blue", encoder) == ["b", "t"]
    manifest(tmp_path / "m", {**lines[0], "metadata": {"y": 2, "x": 1}})
    assert index_source(source, index, encoder).skipped == 1  # the order of keys says nothing
    manifest(tmp_path / "m", {**lines[0], "metadata": {"y": 2, "x": 3}})
    batches = list(encoder.batches)
    report = index_source(source, index, encoder)
    assert (report.added, report.updated, report.skipped, index.count()) == (0, 1, 0, 3)
    assert encoder.batches == batches  # the image is the same, so its vectors are
    assert index.fetch(["a"]).documents[0].metadata == {"y": 2, "x": 3}
    report = index_source(source, index, encoder, resume=False)
    assert (report.added, report.skipped) == (1, 0)


def test_a_touched_image_is_left_alone_and_a_changed_one_is_encoded_again(tmp_path, index, encoder):
    path = picture(tmp_path / "p" / "a.png")
    index_source(tmp_path / "p", index, encoder)
    os.utime(path, ns=(1, 1))
    assert index_source(tmp_path / "p", index, encoder).added == 0
    picture(path, "blue")  # of the same size and, as it is made to look, of the same time
    os.utime(path, ns=(1, 1))
    assert index_source(tmp_path / "p", index, encoder).added == 1
    assert (ids(index, "blue", encoder), index.count()) == (["a.png"], 1)


def test_a_killed_run_loses_little_and_goes_on(tmp_path, encoder, monkeypatch):
    monkeypatch.setattr(pipeline, "_COMMIT_ITEMS", 10)
    lines = [{"id": f"{i:03}", "text": "red"} for i in range(60)]
    source = manifest(tmp_path / "m", b"no json", *lines)
    path = tmp_path / "i.lex"

    class Killer(ColourEncoder):
        def encode_text(self, texts):
            if len(self.batches) == 7:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().encode_text(texts)

    def run() -> None:
        with open_index(path, True, encoder.vocabulary) as index:
            index_source(source, index, Killer(), batch_size=5)

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert json.loads((path / "rejected.jsonl.part").read_text())["item"] == "line 1"
    assert not (path / "rejected.jsonl").exists()
    with EmbeddedIndex(path, create=True) as index:
        assert index.count() == 30
        report = index_source(source, index, encoder, batch_size=5)
        assert (report.skipped, report.added, index.count()) == (30, 30, 60)
        assert encoder.batches == [5] * 6
        assert [reject["item"] for reject in rejects(index)] == ["line 1"]
    assert not (path / "rejected.jsonl.part").exists()


def test_commits_come_by_time_too(tmp_path, index, encoder, monkeypatch):
    monkeypatch.setattr(pipeline, "_COMMIT_SECONDS", 0.0)
    source = manifest(tmp_path / "m", *({"id": str(i), "text": "red"} for i in range(6)))
    index_source(source, index, encoder, batch_size=2)
    assert index.info()["segments"] == 3


# Batches, models, locks, progress


def test_batches_are_bounded_by_count_and_by_pixels(tmp_path, index, encoder, monkeypatch):
    for i in range(7):
        picture(tmp_path / "p" / f"{i}.png", size=(10, 10))
    index_source(tmp_path / "p", index, encoder, batch_size=3)
    assert encoder.batches == [3, 3, 1]
    monkeypatch.setattr(pipeline, "_MAX_PIXELS_HELD", 150)
    encoder.batches.clear()
    index_source(tmp_path / "p", index, encoder, batch_size=3, resume=False)
    assert encoder.batches == [2, 2, 2, 1]


def test_the_pixels_of_an_image_are_counted_once_whatever_the_batch(
    tmp_path, index, encoder, monkeypatch
):
    asked = []
    width = property(lambda image: asked.append(1) or image.size[0])
    monkeypatch.setattr(Image.Image, "width", width)
    for i in range(7):
        picture(tmp_path / "p" / f"{i}.png", size=(10, 10))
    index_source(tmp_path / "p", index, encoder, batch_size=1)
    by_one = len(asked)
    index_source(tmp_path / "p", index, encoder, batch_size=7, resume=False)
    assert encoder.batches == [1] * 7 + [7]
    assert len(asked) == 2 * by_one > 0


def test_another_model_is_refused(tmp_path, index):
    source = manifest(tmp_path / "m", {"id": "a", "text": "red"})
    with pytest.raises(VocabularyMismatchError, match=r"model 'colours'.*model 'other'"):
        index_source(source, index, ColourEncoder("other"))
    other = ColourEncoder()
    other.vocabulary = Vocabulary(["a", "b", "c"])
    with pytest.raises(VocabularyMismatchError, match=r"'colours' has vocabulary \w{12}"):
        index_source(source, index, other)
    with (
        open_index(tmp_path / "bare.lex", create=True) as bare,
        pytest.raises(VocabularyMismatchError, match="without a vocabulary"),
    ):
        index_source(source, bare, ColourEncoder())


def test_a_second_run_at_the_same_time_is_refused(tmp_path, index, encoder):
    source = manifest(tmp_path / "m", {"id": "a", "text": "red"})
    with open_index(index.directory) as second, pytest.raises(IndexLockedError):
        index_source(source, second, encoder)
    assert not list(index.directory.glob("rejected*"))


def test_progress_shows_when_asked_for(tmp_path, index, encoder, capsys):
    source = manifest(tmp_path / "m", {"id": "a", "text": "red"}, {"id": "b", "text": "red"})
    index_source(source, index, encoder)
    assert capsys.readouterr().err == ""  # stderr is no terminal here
    index_source(source, index, encoder, show_progress_bar=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "2/2" in err  # the total is known, so that there is a time to the end
    assert "items/s" in err
