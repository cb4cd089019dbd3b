"""A library of photographs between runs: moved, renamed, unmounted, half deleted, grown."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from indexer_fakes import ColourEncoder
from ingest_fakes import contents, manifest, new_index, picture, pictures
from lexvla.errors import InputError
from lexvla_indexer import Document, Report, index_source
from lexvla_indexer.encoded import encode_source, index_encoded
from lexvla_indexer.relocating import relocate
from lexvla_indexer.roots import Roots


def run(source: Any, place: Path, **options: Any) -> dict[str, int]:
    """Return the counts that are not 0; the model must not be asked for what is not added."""
    encoder = ColourEncoder()
    with new_index(place) as index:
        report = index_source(source, index, encoder, **options)
    assert sum(encoder.batches) == report.added
    return counts(report)


def counts(report: Report) -> dict[str, Any]:
    kept = {name: value for name, value in vars(report).items() if value and name != "rejects_path"}
    if report.prune_refused:
        why, anyway = report.prune_refused.split(" (--")
        assert anyway == "prune-anyway deletes them)"
        kept["prune_refused"] = why
    return {name: len(value) if name == "rejected" else value for name, value in kept.items()}


def same_as_fresh(photos: Path, place: Path) -> bool:
    """Tell whether an index has what a new index of the folder has, in the same places."""
    fresh = place.with_name("fresh.lex")
    shutil.rmtree(fresh, ignore_errors=True)
    run(photos, fresh)
    ids = sorted(path.relative_to(photos).as_posix() for path in photos.rglob("*.png"))
    with new_index(place) as old, new_index(fresh) as new:
        both = contents(old, ids), contents(new, ids)
        files = [[Roots(i).locate(d) for d, *_ in c] for i, c in zip((old, new), both, strict=True)]
        assert files[0] == files[1] == [str(photos / name) for name in ids]
        plain = [[(d.id, d.uri, d.text, d.metadata, *v) for d, *v in each] for each in both]
        return plain[0] == plain[1]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Write 30 pictures, 15 in each of two folders."""
    pictures(tmp_path / "photos" / "2023", range(15))
    pictures(tmp_path / "photos" / "2024", range(15, 30))
    return tmp_path / "photos"


@pytest.fixture
def place(tmp_path: Path, photos: Path) -> Path:
    assert run(photos, tmp_path / "i.lex") == {"added": 30}
    return tmp_path / "i.lex"


def test_one_folder_is_one_source_however_it_is_spelt(
    photos: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (photos.parent / "jobs").mkdir()
    (photos.parent / "link").symlink_to(photos)
    monkeypatch.chdir(photos.parent / "jobs")
    (photos / "2024" / "029.png").unlink()
    expected = {"skipped": 29, "pruned": 1}
    for spelling in ("../photos", "../photos/", "../link", "../jobs/../photos", str(photos)):
        assert run(spelling, place, prune=True) == expected
        expected = {"skipped": 29}
    with new_index(place) as index:
        assert [p.path for p in Roots(index).values()] == [str(photos)]
    assert same_as_fresh(photos, place)


def test_a_manifest_is_one_source_however_it_is_spelt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = manifest(tmp_path / "m", {"id": "a", "text": "red"}, {"id": "b", "text": "red"})
    assert run(source, tmp_path / "i.lex") == {"added": 2}
    manifest(tmp_path / "m", {"id": "a", "text": "red"})
    (tmp_path / "link").symlink_to(tmp_path / "m")
    monkeypatch.chdir(tmp_path / "m")
    spelt = "../link/items.jsonl"
    assert run(spelt, tmp_path / "i.lex", prune=True) == {"skipped": 1, "pruned": 1}


def test_a_moved_library_is_not_encoded_again(photos: Path, place: Path, tmp_path: Path) -> None:
    new = tmp_path / "disk" / "pictures"
    new.parent.mkdir()
    photos.rename(new)
    with new_index(place) as index:
        assert relocate(index, new) == str(photos)
    assert same_as_fresh(new, place)
    (new / "2024" / "029.png").unlink()
    assert run(new, place, prune=True) == {"skipped": 29, "pruned": 1}
    # Another library may take the old place: it is another source.
    pictures(photos, range(40, 43))
    assert run(photos, place) == {"added": 3}
    assert run(new, place, prune=True) == {"skipped": 29}


def test_a_library_that_was_moved_and_indexed_again_is_in_one_place(
    photos: Path, place: Path, tmp_path: Path
) -> None:
    new, third = tmp_path / "new", tmp_path / "third"
    photos.rename(new)
    assert run(new, place) == {"moved_from": str(photos), "skipped": 30}
    new.rename(third)
    with new_index(place) as index:
        assert relocate(index, third) == str(new)
    assert same_as_fresh(third, place)
    third.rename(photos)  # where no document is any more
    with new_index(place) as index:
        assert relocate(index, photos) == str(third)
        assert relocate(index, photos) == str(photos)
    assert same_as_fresh(photos, place)
    assert run(photos, place, prune=True) == {"skipped": 30}


def test_only_a_folder_of_the_index_that_has_its_files_is_relocated(
    photos: Path, place: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    other = pictures(tmp_path / "other", [50])
    with new_index(place) as index:
        with pytest.raises(InputError, match=r"has none of the files of .*photos, such as 2023/0"):
            relocate(index, tmp_path / "empty")
        with pytest.raises(InputError, match="no such folder"):
            relocate(index, tmp_path / "gone")
        with pytest.raises(InputError, match=r"not a folder of this index; .*photos$"):
            relocate(index, photos, tmp_path / "x")
        index_source(other, index, ColourEncoder())
        with pytest.raises(InputError, match=r"several folders; .*: .*other, .*photos$"):
            relocate(index, tmp_path / "empty")
        shutil.copytree(other, photos, dirs_exist_ok=True)
        with pytest.raises(InputError, match="is another source of this index"):
            relocate(index, photos, other)
    with new_index(tmp_path / "new.lex") as index, pytest.raises(InputError, match="not made from"):
        relocate(index, photos)


def test_files_that_move_within_a_library_keep_their_vectors(photos: Path, place: Path) -> None:
    (photos / "2023").rename(photos / "archive")
    (photos / "2024" / "020.png").rename(photos / "best.png")
    picture(photos / "2024" / "new.png", "red")
    assert run(photos, place) == {"moved": 16, "skipped": 14, "added": 1}
    assert same_as_fresh(photos, place)
    assert run(photos, place, prune=True) == {"skipped": 31}


def test_a_copy_does_not_move_the_original(photos: Path, place: Path) -> None:
    shutil.copy(photos / "2023" / "000.png", photos / "copy.png")
    assert run(photos, place) == {"added": 1, "skipped": 30}
    (photos / "2023" / "000.png").rename(photos / "a.png")
    shutil.copy(photos / "a.png", photos / "b.png")
    assert run(photos, place) == {"moved": 1, "added": 1, "skipped": 30}
    assert same_as_fresh(photos, place)


def test_a_file_that_replaces_another_keeps_its_own_vectors(photos: Path, place: Path) -> None:
    (photos / "2023" / "000.png").rename(photos / "2024" / "020.png")
    assert run(photos, place) == {"moved": 1, "skipped": 28}
    assert same_as_fresh(photos, place)


def test_nothing_moves_while_a_folder_cannot_be_read(
    photos: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (photos / "2023" / "000.png").rename(photos / "a.png")
    real = photos.resolve()

    def walk(top: Path, onerror: Any, **_: Any) -> Any:
        yield str(real), [], ["a.png"]
        onerror(PermissionError(13, "Permission denied", str(real / "2023")))

    monkeypatch.setattr("os.walk", walk)
    assert run(photos, place) == {"added": 1, "rejected": 1}


def test_an_unmounted_disk_is_not_pruned(photos: Path, place: Path) -> None:
    aside = photos.parent / "aside"
    pictures(photos / "disk", range(40, 43))
    assert run(photos, place) == {"added": 3, "skipped": 30}
    (photos / "disk").rename(aside)
    (photos / "disk").mkdir()  # the mount point stays
    refused = run(photos, place, prune=True)
    assert refused.pop("prune_refused") == (
        f"3 of 33 documents are gone, 3 of them from '{photos / 'disk'}', which has no files now"
    )
    assert refused == {"skipped": 30}
    (photos / "disk").rmdir()
    aside.rename(photos / "disk")
    assert run(photos, place, prune=True) == {"skipped": 33}
    shutil.rmtree(photos / "disk")  # few, and the folder is gone too: it was deleted
    assert run(photos, place, prune=True) == {"skipped": 30, "pruned": 3}


def test_folders_of_any_name_are_relocated_and_missed(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9 100%41")
    pictures(tmp_path / "old" / name, range(3))
    place = tmp_path / "i.lex"
    assert run(tmp_path / "old", place) == {"added": 3}
    photos = (tmp_path / "old").rename(tmp_path / "new")
    with new_index(place) as index:
        relocate(index, photos)
    picture(photos / "left.png")
    for path in (photos / name).iterdir():
        path.unlink()
    refused = run(photos, place, prune=True)
    folder = f"{photos.as_uri()}/caf%E9%20100%2541"
    assert f"3 of them from '{folder}', which has no files" in refused["prune_refused"]


def test_a_library_that_is_not_mounted_is_not_pruned(photos: Path, place: Path) -> None:
    shutil.rmtree(photos)
    photos.mkdir()
    refused = run(photos, place, prune=True)
    assert refused == {
        "prune_refused": f"30 of 30 documents are gone, 30 of them from '{photos}', "
        "which has no files now"
    }
    assert run(photos, place, prune_anyway=True) == {"pruned": 30}


def test_half_a_library_is_pruned_only_on_demand(photos: Path, place: Path) -> None:
    for number in range(9):
        (photos / "2023" / f"{number:03}.png").unlink()
    assert run(photos, place, prune=True) == {"skipped": 21, "pruned": 9}  # fewer than 10
    for number in range(15, 25):
        (photos / "2024" / f"{number:03}.png").unlink()
    refused = run(photos, place, prune=True)
    folder = photos / "2024"
    assert (
        refused.pop("prune_refused") == f"10 of 21 documents are gone, all of them from '{folder}'"
    )
    assert refused == {"skipped": 11}
    assert run(photos, place, prune_anyway=True) == {"skipped": 11, "pruned": 10}
    assert same_as_fresh(photos, place)


def test_a_tenth_may_go(tmp_path: Path) -> None:
    lines = [{"id": f"{number:03}", "text": "red"} for number in range(110)]
    source, place = manifest(tmp_path / "m", *lines), tmp_path / "i.lex"
    run(source, place)
    manifest(tmp_path / "m", *lines[11:])
    assert run(source, place, prune=True) == {"skipped": 99, "pruned": 11}
    manifest(tmp_path / "m", *lines[21:])
    refused = run(source, place, prune=True)
    assert refused == {"skipped": 89, "prune_refused": "10 of 99 documents are gone"}


def ids(place: Path) -> list[str]:
    with new_index(place) as index:
        assert all(
            Path(Roots(index).locate(document)).is_file()
            for document in index.list_documents(limit=1000).documents
        )
        return [name for name, _ in index.fingerprinted()]


def test_equal_names_in_two_folders_are_two_documents(tmp_path: Path) -> None:
    one, two = pictures(tmp_path / "one", range(2)), pictures(tmp_path / "two", range(1, 3), 9)
    also_two, place = pictures(tmp_path / "x" / "two", range(1, 2), 19), tmp_path / "i.lex"
    for _ in range(2):
        for folder in (one, two, also_two):
            run(folder, place, prune=True)
    every = ["000.png", "001.png", "two-2/001.png", "two/001.png", "two/002.png"]
    assert ids(place) == every
    two = two.rename(tmp_path / "new")
    with new_index(place) as index:
        relocate(index, two, tmp_path / "two")
    (two / "001.png").rename(two / "a.png")
    assert run(two, place) == {"skipped": 1, "moved": 1}
    (two / "a.png").unlink()
    assert run(two, place, prune=True) == {"skipped": 1, "pruned": 1}
    assert ids(place) == ["000.png", "001.png", "two-2/001.png", "two/002.png"]
    (two / "002.png").unlink()
    refused = run(two, place, prune=True)["prune_refused"]
    assert refused.endswith(f"1 of them from '{two}', which has no files now")


def test_ids_of_two_folders_never_meet(tmp_path: Path) -> None:
    one, place = tmp_path / "one", tmp_path / "i.lex"
    pictures(one / "two", range(1))
    run(one, place)
    run(pictures(tmp_path / "two", range(1), 9), place)
    assert ids(place) == ["two-2/000.png", "two/000.png"]
    pictures(one / "two-2", range(1), 19)
    encoder = ColourEncoder()
    with new_index(place) as index:
        report = index_source(one, index, encoder, prune=True)
    assert (report.skipped, encoder.batches) == (1, [])
    (rejected,) = report.rejected
    assert rejected.item == "two-2/000.png"
    start = f"the ids that start with 'two-2/' are those of {tmp_path / 'two'}"
    assert rejected.rule == f"{start}; rename this folder"
    assert ids(place) == ["two-2/000.png", "two/000.png"]


def test_a_manifest_replaces_documents_with_its_ids(tmp_path: Path, place: Path) -> None:
    source = manifest(tmp_path / "m", {"id": "2023/000.png", "text": "red"})
    assert run(source, place) == {"added": 1, "replaced": 1}
    with new_index(place) as index:
        assert index.count() == 30


def test_a_folder_inside_a_library_is_a_part_of_it(photos: Path, place: Path) -> None:
    assert run(photos / "2024", place) == {"skipped": 15}
    (photos / "2024" / "015.png").unlink()
    (photos / "2024" / "016.png").rename(photos / "2024" / "a.png")
    (photos / "2023" / "000.png").unlink()
    picture(photos / "2024" / "new.png", "red")
    picture(photos / "2023" / "new.png", "blue")
    # Neither is what lies elsewhere read by a link, nor what moved there.
    (photos / "2024" / "link").symlink_to(photos / "2023")
    (photos / "2024" / "up").symlink_to(photos.parent)
    counted = run(photos / "2024", place, prune=True)
    counted.pop("ignored")  # beside the library
    assert counted == {"skipped": 13, "moved": 1, "added": 1, "pruned": 1}
    (photos / "2024" / "up").unlink()
    assert run(photos, place, prune=True) == {"skipped": 29, "added": 1, "pruned": 1}
    assert [name for name in ids(place) if name.startswith("2024/")][-2:] == [
        "2024/a.png",
        "2024/new.png",
    ]
    for path in (photos / "2024").glob("*.png"):
        path.unlink()
    assert run(photos / "2024", place, prune=True)["prune_refused"] == (
        f"15 of 15 documents are gone, 15 of them from '{photos / '2024'}', which has no files now"
    )


def test_folders_inside_one_that_is_indexed_become_parts_of_it(tmp_path: Path) -> None:
    photos, place = tmp_path / "photos", tmp_path / "i.lex"
    inner = pictures(photos / "a", range(2))
    pictures(inner / "a", range(1, 3), 9)  # so that a new id is another document's old one
    pictures(photos / "b", range(1), 19)
    pictures(photos, range(1), 29)
    assert run(inner, place) == {"added": 4}
    assert run(photos / "b", place) == {"added": 1}
    assert ids(place) == ["000.png", "001.png", "a/001.png", "a/002.png", "b/000.png"]
    absorbed = [str(inner), str(photos / "b")]
    assert run(photos, place) == {"absorbed": absorbed, "updated": 5, "added": 1}
    assert same_as_fresh(photos, place)
    assert run(inner, place, prune=True) == {"skipped": 4}
    assert run(photos, place, prune=True) == {"skipped": 6}


def test_many_folders_become_parts_a_chunk_at_a_time(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lexvla_indexer.entering._CHUNK", 4)
    pictures(photos / "2023" / "2023" / "2023", range(3), 9)
    assert run(photos / "2023", tmp_path / "j.lex") == {"added": 18}
    assert run(photos, tmp_path / "j.lex") == {
        "absorbed": [str(photos / "2023")],
        "updated": 18,
        "added": 15,
    }
    assert same_as_fresh(photos, tmp_path / "j.lex")


def test_a_run_killed_while_parts_change_their_ids_loses_and_doubles_nothing(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lexvla_indexer.entering._CHUNK", 4)
    begun = tmp_path / "begun.lex"
    run(photos / "2023", begun)
    for kept in range(4):
        for first in (photos, photos / "2023"):
            place = tmp_path / f"{kept}-{first.name}.lex"
            shutil.copytree(begun, place)
            with new_index(place) as index, monkeypatch.context() as patch:
                commits = [index.commit] * kept
                patch.setattr(index, "commit", lambda left=commits: left.pop()())
                with pytest.raises(IndexError):
                    index_source(photos, index, ColourEncoder())
            assert len(ids(place)) == 15
            assert run(first, place)["absorbed"] == [str(photos / "2023")]
            run(photos, place)
            assert same_as_fresh(photos, place)
            assert len(ids(place)) == 30


def test_the_ids_of_parts_never_replace_those_of_another_folder(tmp_path: Path) -> None:
    whole, place = tmp_path / "p", tmp_path / "i.lex"
    folders = [pictures(whole / "a", range(2)), pictures(tmp_path / "q" / "b", range(2), 9)]
    folders += [pictures(whole / "b", range(2), 19)]
    for folder in folders:
        run(folder, place)
    inside = [str(whole / "a"), str(whole / "b")]
    assert run(whole, place) == {"absorbed": inside, "updated": 4}
    of_whole = ["p/a/000.png", "p/a/001.png", "p/b/000.png", "p/b/001.png"]
    assert ids(place) == ["b/000.png", "b/001.png", *of_whole]


def test_a_part_waits_for_ids_that_another_part_gives_up(tmp_path: Path) -> None:
    one, place = tmp_path / "p" / "one", tmp_path / "i.lex"
    for number in range(2):  # whichever of the two parts comes first
        shutil.rmtree(one.parent, ignore_errors=True)
        shutil.rmtree(place, ignore_errors=True)
        pictures(one / "two", range(2), number)
        two = pictures(tmp_path / "p" / "two", range(2), 9)
        run(one, place)
        run(two, place)
        assert ids(place) == [f"{name}/00{i}.png" for name in ("two-2", "two") for i in range(2)]
        counted = run(tmp_path / "p", place)
        assert sorted(counted["absorbed"]) == [str(one), str(two)]
        assert same_as_fresh(tmp_path / "p", place)


def test_a_folder_that_moved_into_another_becomes_a_part_of_it(tmp_path: Path) -> None:
    photos, place = pictures(tmp_path / "photos", range(2)), tmp_path / "i.lex"
    run(photos, place)
    two = pictures(tmp_path / "two", range(3), 9)
    run(two, place)
    two = two.rename(photos / "two")
    with new_index(place) as index:
        (rejected, *_) = index_source(photos, index, ColourEncoder()).rejected
    told = f"lexvla relocate --old {tmp_path / 'two'} --root {two}"
    start = f"the ids that start with 'two/' are those of {tmp_path / 'two'}, which is not there"
    assert (rejected.item, rejected.rule) == ("two/000.png", f"{start}; if it moved here: {told}")
    encode_source(photos, ColourEncoder())[0].save(tmp_path / "v.npz")
    with new_index(place) as index:
        report = index_encoded([tmp_path / "v.npz"], index)
    assert (report.skipped, [each.rule for each in report.rejected]) == (2, [rejected.rule] * 3)
    moved = {"moved_from": str(tmp_path / "two"), "absorbed": [str(two)], "updated": 3}
    assert run(two, place) == moved
    assert same_as_fresh(photos, place)


def test_texts_of_a_manifest_that_a_folder_replaces_are_counted(photos: Path, place: Path) -> None:
    lines = [{"id": f"2023/00{n}.png", "image": f"2023/00{n}.png", "text": "ours"} for n in (1, 2)]
    source = manifest(photos, *lines)
    assert run(source, place) == {"updated": 2, "replaced": 2}
    assert run(source, place) == {"skipped": 2}
    (photos / "items.jsonl").unlink()
    assert run(photos, place) == {"skipped": 28, "updated": 2, "replaced": 2}


def test_another_folder_is_not_one_that_is_gone(photos: Path, place: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    pictures(other / "2023", range(15), shift=9)
    pictures(other / "2024", range(15, 30))  # half of them are the same
    photos.rename(tmp_path / "unplugged")
    assert run(other, place) == {"added": 30}
    (tmp_path / "unplugged").rename(photos)
    assert run(photos, place, prune=True) == {"skipped": 30}
    assert len(ids(place)) == 60


def test_vectors_of_two_folders_encoded_elsewhere(photos: Path, tmp_path: Path) -> None:
    folders = (photos / "2023", pictures(tmp_path / "2023", range(3), 9), photos)
    for number, folder in enumerate(folders):
        encode_source(folder, ColourEncoder())[0].save(tmp_path / f"{number}.npz")
    place = tmp_path / "i.lex"
    with new_index(place) as index:
        assert index_encoded([tmp_path / "2.npz", tmp_path / "1.npz"], index).added == 33
        report = index_encoded([tmp_path / "0.npz"], index)
        assert (report.added, report.replaced) == (15, 0)
    assert len(ids(place)) == 33
    assert run(photos, place, prune=True) == {"skipped": 15, "updated": 15}
    assert run(folders[1], place, prune=True) == {"skipped": 3}


def test_a_library_that_grows_keeps_what_it_had(photos: Path, place: Path) -> None:
    pictures(photos / "2025", range(31, 36))
    assert run(photos, place, prune=True) == {"skipped": 30, "added": 5}
    assert same_as_fresh(photos, place)


def test_vectors_encoded_elsewhere_can_be_relocated_and_go_on(photos: Path, tmp_path: Path) -> None:
    encoded, _ = encode_source(photos, ColourEncoder())
    encoded.save(tmp_path / "v.npz")
    here = tmp_path / "here"
    photos.rename(here)
    place = tmp_path / "i.lex"
    with new_index(place) as index:
        assert index_encoded([tmp_path / "v.npz"], index).added == 30
        relocate(index, here)
        assert index_encoded([tmp_path / "v.npz"], index).skipped == 30  # and the root stays
    assert run(here, place, prune=True) == {"skipped": 30}
    assert same_as_fresh(here, place)


def test_a_document_of_no_source_keeps_its_uri(place: Path) -> None:
    with new_index(place) as index:
        assert Roots(index).locate(Document("x", uri="https://example.org/a.png")) == (
            "https://example.org/a.png"
        )
