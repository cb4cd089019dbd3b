"""Vectors in files: shards of a source, and what was encoded elsewhere in an index."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from indexer_fakes import ColourEncoder
from ingest_fakes import contents, manifest, new_index, pictures
from lexvla.encoding import Encoding
from lexvla.errors import InputError, VocabularyMismatchError
from lexvla.vocabulary import Vocabulary
from lexvla_indexer import index_source, open_index
from lexvla_indexer.encoded import Encoded, encode_source, index_encoded
from lexvla_search import cli
from search_fakes import FakeEncoder, save_pictures

IDS = [f"{number:03}.png" for number in range(24)]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return pictures(tmp_path / "photos", range(24))


def save(path: Path, source: Path, encoder: ColourEncoder | None = None, **options: Any) -> Path:
    encode_source(source, encoder or ColourEncoder(), **options)[0].save(path)
    return path


def parts(folder: Path, source: Path, count: int) -> list[Path]:
    folder.mkdir(exist_ok=True)
    return [
        save(folder / f"{i}.npz", source, shard=(i, count), batch_size=4)
        for i in range(1, count + 1)
    ]


@pytest.mark.parametrize("count", [1, 2, 3, 40])
def test_shards_are_the_whole_each_item_once(photos: Path, count: int) -> None:
    found = []
    for i in range(1, count + 1):
        encoded, report = encode_source(photos, ColourEncoder(), shard=(i, count))
        assert report.added + report.skipped == 24
        assert len(encoded.encoding) == len(encoded.documents) == report.added
        found += [document.id for document in encoded.documents]
    assert sorted(found) == IDS


def test_an_items_shard_depends_on_its_id_alone(photos: Path, tmp_path: Path) -> None:
    def first(source: Path) -> set[str]:
        encoded, _ = encode_source(source, ColourEncoder(), shard=(1, 3))
        return {document.id for document in encoded.documents}

    before = first(photos)
    lines = [{"id": name, "text": "red"} for name in reversed([*IDS, "more", "and more"])]
    assert first(manifest(tmp_path / "m", *lines)) - {"more", "and more"} == before
    assert 2 < len(before) < 16


def test_what_was_encoded_elsewhere_is_as_if_indexed_here(photos: Path, tmp_path: Path) -> None:
    lines = [{"id": f"text {n}", "text": "red " * n + "blue"} for n in range(9)]
    lines += [{"id": name, "image": str(photos / name), "metadata": {"n": 1}} for name in IDS]
    source = manifest(tmp_path / "m", *lines)
    ids = [line["id"] for line in lines]
    files = parts(tmp_path / "parts", source, 3)
    with new_index(tmp_path / "a.lex") as direct, new_index(tmp_path / "b.lex") as merged:
        index_source(source, direct, ColourEncoder())
        report = index_encoded(files, merged)
        assert (report.added, report.skipped, report.rejected) == (33, 0, [])
        assert contents(merged, ids) == contents(direct, ids)
        queries = ColourEncoder().encode_text(["red", "green blue", "blue"])
        for here, there in zip(direct.search(queries, 40), merged.search(queries, 40), strict=True):
            assert here.ids == there.ids
            assert here.scores.tolist() == there.scores.tolist()
        again = index_encoded(files, merged)
        assert (again.added, again.skipped) == (0, 33)
        assert index_encoded(files, merged, resume=False).added == 33
        # The documents know their source: the ingest goes on from there.
        manifest(tmp_path / "m", *lines[1:])
        report = index_source(source, merged, ColourEncoder(), prune=True)
        assert (report.added, report.skipped, report.pruned) == (0, 32, 1)


def test_the_file_is_an_encoding_too(photos: Path, tmp_path: Path) -> None:
    encoded, _ = encode_source(photos, ColourEncoder())
    encoded.save(tmp_path / "x.npz")
    loaded = Encoded.load(tmp_path / "x.npz")
    assert loaded.documents == encoded.documents
    assert loaded.origin == encoded.origin
    rows = Encoding.load(tmp_path / "x.npz")
    assert (rows.lexical != encoded.encoding.lexical).nnz == 0
    assert np.array_equal(rows.patches, encoded.encoding.patches)
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["x.npz"]


def test_an_empty_part_adds_nothing(photos: Path, tmp_path: Path) -> None:
    empty = manifest(tmp_path / "m")
    files = [save(tmp_path / "e.npz", empty), save(tmp_path / "p.npz", photos)]
    with new_index(tmp_path / "i.lex") as index:
        assert index_encoded(files, index).added == 24


def test_an_id_that_comes_twice_is_rejected(photos: Path, tmp_path: Path) -> None:
    file = save(tmp_path / "p.npz", photos)
    with new_index(tmp_path / "i.lex") as index:
        report = index_encoded([file, file], index)
        assert (report.added, len(report.rejected), index.count()) == (24, 24, 24)
        assert report.rejected[0].where == str(file)


def test_mixtures_are_refused_before_anything_is_stored(photos: Path, tmp_path: Path) -> None:
    file = save(tmp_path / "a.npz", photos)
    other = save(tmp_path / "b.npz", photos, ColourEncoder("other"))
    stranger = ColourEncoder()
    stranger.vocabulary = Vocabulary(["x", "y", "z"])
    words = save(tmp_path / "c.npz", photos, stranger)
    with new_index(tmp_path / "i.lex") as index:
        for files, complaint in (
            ([file, other], r"a\.npz has vectors of the model 'colours', .*b\.npz of 'other'"),
            ([file, words], r"of the vocabulary '\w{12}', .*c\.npz of '\w{12}'"),
            ([other], "the index has vectors of the model 'colours'"),
            ([words], "the index has vectors of the vocabulary"),
        ):
            with pytest.raises(VocabularyMismatchError, match=complaint):
                index_encoded(files, index)
        assert index.count() == 0


def test_files_that_are_none_are_refused(photos: Path, tmp_path: Path) -> None:
    whole = save(tmp_path / "a.npz", photos).read_bytes()
    bare = tmp_path / "bare.npz"
    encode_source(photos, ColourEncoder())[0].encoding.save(bare)
    for data, complaint in (
        (b"hello", "not an .npz archive"),
        (whole[: len(whole) // 2], "not a whole file"),
        (bare.read_bytes(), "not a whole file of `lexvla encode"),
    ):
        (tmp_path / "bad.npz").write_bytes(data)
        with (
            new_index(tmp_path / "i.lex") as index,
            pytest.raises(InputError, match=complaint),
        ):
            index_encoded([tmp_path / "bad.npz"], index)


# The commands


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> FakeEncoder:
    encoder = FakeEncoder()
    monkeypatch.setattr("lexvla_search.cli.arguments.load_model", lambda *_: encoder)
    return encoder


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    assert cli.main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.usefixtures("model")
def test_encode_and_index_give_what_index_gives(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(save_pictures(tmp_path / "photos"))
    files = [str(tmp_path / f"{i}.npz") for i in (1, 2)]
    done = [
        run(capsys, "encode", folder, "--out", file, "--shard", f"{i}/2")
        for i, file in enumerate(files, 1)
    ]
    assert [d["added"] + d["of other shards"] for d in done] == [4, 4]
    assert sum(d["added"] for d in done) == 4
    direct, merged = str(tmp_path / "a.lex"), str(tmp_path / "b.lex")
    run(capsys, "index", folder, "--index", direct)
    with monkeypatch.context() as patch:
        patch.setattr("lexvla_search.cli.arguments.load_model", None)  # merging needs no model
        assert run(capsys, "index", "--from-encoded", *files, "--index", merged)["documents"] == 4
    answers = [run(capsys, "search", "red", "--index", place) for place in (direct, merged)]
    assert answers[0] == answers[1]
    assert answers[0]["hits"]


@pytest.mark.usefixtures("model")
def test_encode_writes_lines_for_anserini(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = save_pictures(tmp_path / "photos"), tmp_path / "new" / "folder" / "v.jsonl"
    (folder / "bad.png").write_bytes(b"")
    assert cli.main(["encode", str(folder), "--out", str(out)]) == 0
    printed, err = capsys.readouterr()
    assert printed == f"4 added, 1 rejected; the vectors are in {out}\n"
    assert err.rstrip().endswith(f"are listed in {out}.rejected")
    assert {file.name for file in out.parent.iterdir()} == {
        "v.jsonl", "v.jsonl.rejected", "v.jsonl.vocabulary", "v.jsonl.quantization",
    }  # fmt: skip
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["id"] for line in lines] == ["apple.png", "flag.png", "lime.png", "snow.png"]
    assert cli.main(["index", "--from-encoded", str(out), "--index", str(tmp_path / "i")]) == 1
    assert "not an .npz archive" in capsys.readouterr().err
    assert not (tmp_path / "i").exists()


@pytest.mark.usefixtures("model")
def test_exit_codes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, place = save_pictures(tmp_path / "photos"), str(tmp_path / "i.lex")
    out = ["--out", str(tmp_path / "v.npz")]
    index, encode = ["index", str(folder), "--index", place], ["encode", str(folder), *out]
    for command in (index, encode):
        assert cli.main([*command, "--strict"]) == 0
    (folder / "bad.png").write_bytes(b"no image")
    for command in (index, encode):
        assert cli.main(command) == 0
        assert cli.main([*command, "--strict"]) == 1
        assert "bad.png" in capsys.readouterr().err
    manifest(tmp_path / "m", b"no json", {"id": "a", "text": "red"})
    holes = ["index", str(tmp_path / "m" / "items.jsonl"), "--index", place, "--prune"]
    assert cli.main(holes) == 1
    assert "pruned nothing: the listing is incomplete: 'line 1'" in capsys.readouterr().err
    for path in folder.glob("*.png"):
        path.write_bytes(b"no image")
    (tmp_path / "other").mkdir()
    for command in (["index", str(folder), "--index", place], encode):
        assert cli.main(command) == 1
        assert "nothing in" in capsys.readouterr().err
    assert cli.main(["encode", str(folder), *out, "--shard", "1/2"]) == 1


@pytest.mark.usefixtures("model")
def test_prune_and_text_field(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = ["--index", str(tmp_path / "i.lex")]
    lines = [{"id": name, "caption": "red"} for name in "ab"]
    source = str(manifest(tmp_path / "m", *lines))
    done = run(capsys, "index", source, *place, "--text-field", "caption")
    assert (done["added"], done["documents"]) == (2, 2)
    manifest(tmp_path / "m", lines[0])
    done = run(capsys, "index", source, *place, "--text-field", "caption", "--prune")
    assert (done["unchanged"], done["pruned"], done["documents"]) == (1, 1, 1)
    assert cli.main(["index", source, *place]) == 1  # no text in the usual field
    assert "(in 'text')" in capsys.readouterr().err


@pytest.mark.usefixtures("model")
def test_metadata_may_be_part_of_a_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = ["--index", str(tmp_path / "i.lex")]
    fields = ["--text-field", "text, metadata.title,metadata.tags"]
    lines = [
        {"id": "all", "text": "red", "metadata": {"title": "A toucan.", "tags": ["bird", "zoo"]}},
        {"id": "one", "metadata": {"title": "blue"}},
        {"id": "number", "text": "red", "metadata": {"title": 7}},
        {"id": "none", "metadata": {"author": "green"}},
    ]
    source = str(manifest(tmp_path / "m", *lines))
    assert run(capsys, "index", source, *place, *fields)["added"] == 2
    rejects = (tmp_path / "i.lex" / "rejected.jsonl").read_text().splitlines()
    assert [json.loads(line)["rule"] for line in rejects] == [
        "metadata.title must be a string or a list of strings, to be a text",
        "has neither an image nor a text (in 'text' or 'metadata.title' or 'metadata.tags')",
    ]
    with open_index(tmp_path / "i.lex") as index:
        (first, second), _ = index.fetch(["all", "one"])
    assert (first.text, second.text) == ("red\nA toucan.\nbird zoo", "blue")
    assert cli.main(["index", str(tmp_path / "*.tar"), *place, *fields]) == 1
    assert "shards have one text field" in capsys.readouterr().err
