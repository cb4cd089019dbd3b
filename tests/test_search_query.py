"""Queries by text, by image and by both."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lexvla.errors import FilterSyntaxError, InputError
from search import Query
from search.query import MAX_TEXT_LENGTH
from search_fakes import FakeEncoder, spot


@pytest.mark.parametrize("text", [None, "", "  ", "\n\t"])
def test_nothing_asked(text: str | None) -> None:
    with pytest.raises(InputError, match="a query must have a text or an image"):
        Query(text=text)


def test_too_long() -> None:
    Query(text="a" * MAX_TEXT_LENGTH)
    with pytest.raises(InputError, match="at most 4,096 characters, not 49,999") as caught:
        Query(text=" ".join(["word"] * 10_000))
    assert len(str(caught.value)) < 400


def test_no_valid_text() -> None:
    with pytest.raises(InputError, match="valid Unicode"):
        Query(text="red \udcff")
    with pytest.raises(InputError, match="must be a string"):
        Query(text=7)  # type: ignore[arg-type]


def test_filter() -> None:
    assert Query(text="red", filter="year > 2000").filter == "year > 2000"
    for bad in ("year >", "", " "):
        with pytest.raises(FilterSyntaxError, match="column"):
            Query(text="red", filter=bad)
    with pytest.raises(InputError, match="must have a text or an image"):
        Query(filter="year > 2000")


def test_text() -> None:
    encoding = Query(text="red heart").resolve(FakeEncoder())
    assert len(encoding) == 1
    assert encoding.lexical.toarray()[0].tolist() == [1, 0, 0, 0, 0, 0]


def test_no_known_word() -> None:
    with pytest.raises(InputError, match="'zebra': no word of the query is in the vocabulary"):
        Query(text="zebra").resolve(FakeEncoder())


def test_image_by_path_and_in_memory(tmp_path: Path) -> None:
    image = spot("red", (1, 2))
    image.save(tmp_path / "red.png")
    in_memory = Query(image=image).resolve(FakeEncoder())
    for source in (tmp_path / "red.png", str(tmp_path / "red.png")):
        encoding = Query(image=source).resolve(FakeEncoder())
        assert (encoding.lexical != in_memory.lexical).nnz == 0
    # Blank text beside an image is no text: forms send it.
    assert (
        Query(text=" ", image=image).resolve(FakeEncoder()).lexical != in_memory.lexical
    ).nnz == 0


def test_bad_image(tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no image")
    for name in ("bad.png", "missing.png"):
        with pytest.raises(InputError, match=name):
            Query(image=tmp_path / name).resolve(FakeEncoder())


def test_text_and_image_weigh_the_same() -> None:
    encoder = FakeEncoder()
    image = spot("blue", (0, 0), ground="blue")
    encoding = Query(text="red", image=image).resolve(encoder)
    text = encoder.encode_text(["red"]).lexical.toarray()[0]
    picture = encoder.encode_image([image]).lexical.toarray()[0]
    total = text + picture
    expected = total / np.linalg.norm(total)
    assert encoding.lexical.toarray()[0] == pytest.approx(expected, abs=1e-6)
    assert np.linalg.norm(encoding.lexical.data) == pytest.approx(1)


def test_text_and_image_weigh_the_same_whatever_their_length() -> None:
    class Sparser(FakeEncoder):
        """Its text vectors are cut short after they were made unit, as a sparse model's are."""

        def encode_text(self, texts: list[str]):
            encoding = super().encode_text(texts)
            encoding.lexical.data[:] *= 0.5
            return encoding

    image = spot("blue", (0, 0), ground="blue")
    plain = Query(text="red", image=image).resolve(FakeEncoder()).lexical.toarray()
    short = Query(text="red", image=image).resolve(Sparser()).lexical.toarray()
    assert short == pytest.approx(plain, abs=1e-6)
