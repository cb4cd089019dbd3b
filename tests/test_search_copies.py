"""Near-identical documents shown as one hit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy import sparse

from indexer_fakes import ColourEncoder
from ingest_fakes import new_index as colour_index
from ingest_fakes import pictures
from lexvla.encoding import Encoding
from lexvla.errors import InputError
from lexvla.vocabulary import Vocabulary
from lexvla_indexer import Document, EmbeddedIndex, index_source
from lexvla_indexer.fingerprint import content_of
from lexvla_search import Query, Searcher, cli
from search_fakes import PICTURES, FakeEncoder, save_pictures

WORDS = ("up", "down")


class Angles:
    """Have a text's number as an angle in degrees: dense vectors whose cosines are known."""

    name = "angles"
    vocabulary = Vocabulary(WORDS)

    def encode_text(self, texts: list[str]) -> Encoding:
        angles = np.radians([float(text) for text in texts])
        dense = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
        return Encoding(sparse.csr_array(np.ones((len(texts), 2), np.float32)), dense=dense)

    def encode_image(self, images: Any) -> Encoding:
        raise NotImplementedError


def angled(place: Path, **angles: float) -> Searcher:
    """Index documents by their angles."""
    encoder = Angles()
    index = EmbeddedIndex(place, True, encoder.vocabulary, encoder.name)
    index.add(
        [Document(name) for name in angles], encoder.encode_text([f"{a}" for a in angles.values()])
    )
    index.commit()
    return Searcher(encoder, index)


def groups(searcher: Searcher, **options: Any) -> list[tuple[int | None, str, tuple[str, ...]]]:
    asked = Query(text="0", legs=("dense",), **options)
    return [(hit.rank, hit.id, hit.copies) for hit in searcher.search(asked)]


def test_a_group_is_around_its_best_hit(tmp_path: Path) -> None:
    # cos 18 degrees is 0.951, cos 19 degrees 0.946.
    searcher = angled(tmp_path / "i", a=0, b=18, c=19, d=36, e=60, f=60)
    assert groups(searcher, group_copies=True) == [
        *((1, "a", ("b",)), (2, "c", ("d",)), (3, "e", ("f",)))
    ]
    assert groups(searcher, group_copies=1) == [
        *((1, "a", ()), (2, "b", ()), (3, "c", ()), (4, "d", ()), (5, "e", ("f",)))
    ]
    assert groups(searcher, group_copies=0.5) == [(1, "a", ("b", "c", "d", "e", "f"))]
    assert [copies for *_, copies in groups(searcher)] == [None] * 6


def test_pages_stay_full_and_fit_together(tmp_path: Path) -> None:
    angles = {f"{g}{n}": 25.0 * g + n / 10 for g in range(4) for n in range(8)}
    searcher = angled(tmp_path / "i", **angles)
    whole = groups(searcher, group_copies=True, k=10)
    assert [(rank, name) for rank, name, _ in whole] == [(1, "00"), (2, "10"), (3, "20"), (4, "30")]
    assert whole[0][2] == tuple(f"0{n}" for n in range(1, 8))
    for k in (1, 2, 3):
        pages = [groups(searcher, group_copies=True, k=k, offset=o) for o in range(0, 4, k)]
        assert [len(page) for page in pages] == [min(k, 4 - o) for o in range(0, 4, k)]
        assert [hit[:2] for page in pages for hit in page] == [hit[:2] for hit in whole]


def test_equal_files_are_copies_whatever_their_vectors(tmp_path: Path) -> None:
    photos = pictures(tmp_path / "p", [1, 40])
    shutil.copy(photos / "001.png", photos / "copy.png")
    with colour_index(tmp_path / "i.lex") as index:
        index_source(photos, index, ColourEncoder())
        asked = Query(text="green", group_copies=1)
        hits = Searcher(ColourEncoder(), index).search(asked)
        assert [(hit.id, hit.copies) for hit in hits] == [
            *(("001.png", ("copy.png",)), ("040.png", ()))
        ]


@pytest.mark.parametrize("value", [0, -1, 1.5, "yes", float("nan"), None])
def test_a_cosine_is_above_0_and_at_most_1(value: Any) -> None:
    with pytest.raises(InputError, match="group_copies"):
        Query(text="red", group_copies=value)


def test_grouped_pages_have_no_cursor(tmp_path: Path) -> None:
    searcher = angled(tmp_path / "i", a=0, b=1, c=60, d=61)
    answer = searcher.answer(Query(text="0", legs=("dense",), k=1, group_copies=True))
    assert ([hit.id for hit in answer.hits], answer.next, answer.total) == (["a"], None, 4)
    with pytest.raises(InputError, match="cannot go with group_copies"):
        Query(text="0", after="x", group_copies=True)


def test_the_command_and_the_server_group_copies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    served = pytest.importorskip("api_fakes").served
    monkeypatch.setattr("lexvla_search.cli.arguments.load_model", lambda *_: FakeEncoder())
    photos, place = save_pictures(tmp_path / "p"), str(tmp_path / "pictures.lex")
    Image.open(photos / "apple.png").resize((32, 32)).save(photos / "small.png")
    assert cli.main(["index", str(photos), "--index", place]) == 0
    capsys.readouterr()
    command = ["search", "red", "--index", place, "--group-copies"]
    assert cli.main(command) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert "apple.png +1 alike" in first
    assert "flag.png" in second
    assert cli.main([*command, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert [hit["copies"] for hit in data["hits"]] == [["small.png"], []]
    with served(tmp_path, FakeEncoder()) as client:
        for value, copies in ((True, [["small.png"], []]), (False, [None] * 3), (0.999, None)):
            answer = client.post("/v1/search", json={"text": "red", "group_copies": value}).json()
            assert copies is None or [hit["copies"] for hit in answer["hits"]] == copies
        assert client.post("/v1/search", json={"text": "red", "group_copies": 2}).status_code == 422


def test_uploads_are_copies_if_their_bytes_are(tmp_path: Path) -> None:
    fakes = pytest.importorskip("api_fakes")
    lime, apple = (fakes.text_of(fakes.png(PICTURES[name])) for name in ("lime", "apple"))
    lines = [{"id": "a", "image": lime}, {"id": "b", "image": apple}, {"id": "c", "image": lime}]
    content = "".join(json.dumps(line) + "\n" for line in lines).encode()
    with fakes.served(tmp_path, FakeEncoder()) as client:
        headers = {"Content-Type": "application/x-ndjson"}
        assert client.put("/v1/documents", content=content, headers=headers).json()["indexed"] == 3
        asked = {"similar": ["lime"], "group_copies": 1, "k": 2}
        hits = client.post("/v1/search", json=asked).json()["hits"]
    assert (hits[0]["id"], hits[0]["copies"]) == ("a", ["c"])


@pytest.mark.parametrize(
    ("fingerprint", "content"),
    [("source:content:stored", "content"), ("upload:content:", "content"), ("a:b", ""), ("", "")],
)
def test_only_a_fingerprint_of_three_parts_tells_the_content(
    fingerprint: str, content: str
) -> None:
    assert content_of(fingerprint) == content
