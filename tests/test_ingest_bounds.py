"""The ingest's threads: how much they hold, and that nothing depends on their timing."""

from __future__ import annotations

import random
import threading
import time
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import lexvla.images
from indexer_fakes import ColourEncoder
from ingest_fakes import contents, manifest, new_index, picture, pictures, same, shard
from lexvla.encoding import Encoding
from lexvla.errors import InputError, ModelError
from lexvla_indexer import index_source, loading, pipeline
from lexvla_indexer.encoded import encode_source


class Alive:
    """Count decoded images, from their decoding to their end."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = self.most = 0
        self.lock = threading.Lock()
        real = lexvla.images.open_image

        def open_image(*args: Any, **options: Any) -> Image.Image:
            image = real(*args, **options)
            self.change(1)
            weakref.finalize(image, self.change, -1)
            return image

        monkeypatch.setattr(lexvla.images, "open_image", open_image)

    def change(self, by: int) -> None:
        with self.lock:
            self.now += by
            self.most = max(self.most, self.now)


class SlowEncoder(ColourEncoder):
    def encode_image(self, images: Sequence[Any]) -> Encoding:
        time.sleep(0.02)
        return super().encode_image(images)


@pytest.mark.parametrize("encoder", [ColourEncoder(), SlowEncoder()])
def test_decoded_images_are_bounded(
    encoder: ColourEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "LOADED_AHEAD", 6)
    alive = Alive(monkeypatch)
    photos = pictures(tmp_path / "p", range(80))
    with new_index(tmp_path / "i.lex") as index:
        assert index_source(photos, index, encoder, batch_size=5).added == 80
    assert 5 < alive.most <= 2 * 5 + 6
    assert alive.now == 0
    assert encoder.batches == [5] * 16


def test_large_images_are_bounded_by_their_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "LOADED_AHEAD", 2)
    monkeypatch.setattr(pipeline, "_MAX_PIXELS_HELD", 3 * 4 * 4 - 1)
    alive = Alive(monkeypatch)
    with new_index(tmp_path / "i.lex") as index:
        index_source(pictures(tmp_path / "p", range(30)), index, SlowEncoder(), batch_size=30)
    assert alive.most <= 2 * 3 + 2


def test_the_model_works_while_the_next_images_are_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded, at_start = [], []
    real = lexvla.images.open_image

    def open_image(*args: Any, **options: Any) -> Image.Image:
        decoded.append(args[1])
        return real(*args, **options)

    class Waiting(ColourEncoder):
        def encode_image(self, images: Sequence[Any]) -> Encoding:
            at_start.append(len(decoded))
            deadline = time.monotonic() + 30
            while len(decoded) < min(20, 5 * len(at_start) + 5) and time.monotonic() < deadline:
                time.sleep(0.001)
            at_start[-1] = len(decoded)
            return super().encode_image(images)

    monkeypatch.setattr(lexvla.images, "open_image", open_image)
    with new_index(tmp_path / "i.lex") as index:
        index_source(pictures(tmp_path / "p", range(20)), index, Waiting(), batch_size=5)
    assert [have >= want for have, want in zip(at_start, (10, 15, 20, 20), strict=True)] == [
        True
    ] * 4


def test_nothing_depends_on_the_timing_of_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = pictures(tmp_path / "p", range(30))
    (photos / "011.png").write_bytes(b"damaged")
    (photos / "004.png").write_bytes(b"damaged")
    real = loading.load
    results = []
    for seed in range(3):
        rng = random.Random(seed)

        def load(*args: Any, rng: random.Random = rng) -> Any:
            time.sleep(rng.random() / 100)
            return real(*args)

        monkeypatch.setattr(pipeline, "load", load)
        encoder = ColourEncoder()
        encoded, report = encode_source(photos, encoder, batch_size=4)
        results.append((encoded, report, encoder.batches))
    for encoded, report, batches in results:
        assert encoded.documents == results[0][0].documents
        assert same(encoded.encoding, results[0][0].encoding)
        assert [reject.item for reject in report.rejected] == ["004.png", "011.png"]
        assert batches == [4] * 7
    names = [document.id for document in encoded.documents]
    assert names == sorted(names)


# What the model says


class Picky(ColourEncoder):
    """Refuse images of less than three pixels, as a model refuses those smaller than a patch."""

    def encode_image(self, images: Sequence[Any]) -> Encoding:
        if any(image.width < 3 for image in images):
            raise InputError("<image>", "is smaller than a patch")
        return super().encode_image(images)


def test_what_the_model_refuses_is_rejected_and_the_rest_of_its_batch_is_not(
    tmp_path: Path,
) -> None:
    photos = pictures(tmp_path / "p", range(6))
    for name in ("a.png", "b.png", "001.png"):
        picture(photos / name, size=(2, 2))
    with new_index(tmp_path / "i.lex") as index:
        report = index_source(photos, index, Picky(), batch_size=3)
        rejected = sorted((reject.item, reject.rule) for reject in report.rejected)
        rule = "is smaller than a patch"
        assert rejected == [("001.png", rule), ("a.png", rule), ("b.png", rule)]
        assert (report.added, index.count()) == (5, 5)


def test_a_broken_model_ends_the_run_and_what_was_committed_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(ColourEncoder):
        def encode_image(self, images: Sequence[Any]) -> Encoding:
            if len(self.batches) == 4:
                raise ModelError("not finite")
            return super().encode_image(images)

    monkeypatch.setattr(pipeline, "_COMMIT_ITEMS", 4)
    photos, threads = pictures(tmp_path / "p", range(40)), threading.active_count()
    with new_index(tmp_path / "i.lex") as index:
        with pytest.raises(ModelError, match="not finite"):
            index_source(photos, index, Broken(), batch_size=2)
        assert index.count() == 8
    assert threading.active_count() <= threads


# Shards of WebDataset


def test_shards(tmp_path: Path) -> None:
    shard(tmp_path / "0.tar", {"a": ("two\nwords", "red"), "b": (None, "red")})
    shard(tmp_path / "1.tar", {"a": ("blue", "blue")})
    with new_index(tmp_path / "i.lex") as index:
        report = index_source(tmp_path / "{0..1}.tar", index, ColourEncoder())
        assert [(r.item, r.where) for r in report.rejected] == [
            ("0.tar/b", str(tmp_path / "0.tar"))
        ]
        assert "no caption" in report.rejected[0].rule
        ((first, _, _, _), (second, columns, _, _)) = contents(index, ["0.tar/a", "1.tar/a"])
        assert (first.text, first.uri, second.text) == ("two\nwords", "", "blue")
        assert columns == [2]  # the image is encoded
        again = index_source(tmp_path / "{0..1}.tar", index, ColourEncoder())
        assert (again.added, again.skipped) == (0, 2)
        # Another pattern is another source of the same items.
        again = index_source(tmp_path / "*.tar", index, ColourEncoder(), text_field="alt")
        assert (again.added, again.updated, again.skipped) == (0, 2, 0)  # the images are the same
        assert index.fetch(["1.tar/a"]).documents[0].text == "x"
    with new_index(tmp_path / "j.lex") as index, pytest.raises(InputError, match="no such shard"):
        index_source(tmp_path / "2.tar", index, ColourEncoder())


def test_the_field_of_the_text(tmp_path: Path) -> None:
    source = manifest(tmp_path / "m", {"id": "a", "text": "red", "alt": "blue"}, {"id": "b"})
    with new_index(tmp_path / "i.lex") as index:
        report = index_source(source, index, ColourEncoder(), text_field="alt")
        assert index.fetch(["a"]).documents[0].text == "blue"
        assert "(in 'alt')" in report.rejected[0].rule
        with pytest.raises(InputError, match="no text field"):
            index_source(tmp_path / "m", index, ColourEncoder(), text_field="alt")
