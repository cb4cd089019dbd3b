"""Words of a text that are not known: named, left out, and never read as other words."""

from __future__ import annotations

import pytest

from hybrid_fakes import RowEncoder
from lexvla.encoding import Encoding
from lexvla.known_words import KnownWords
from lexvla_indexer import Document, open_index
from lexvla_search import Query, Searcher
from lexvla_search.fusion import FUSIONS
from lexvla_search.typed_words import UnknownWord, say_unknown, understood
from model_fakes import picture, tiny_model
from search_fakes import FakeEncoder


def read(text: str, *words: str) -> tuple[str, list[str]]:
    encoder = FakeEncoder()
    encoder.known_words = KnownWords(words or ("bird", "red", "photo", "two", "x", "ray"))
    kept, unknown = understood(text, encoder)
    return kept, [each.word for each in unknown]


@pytest.mark.parametrize(
    "text",
    ["red bird", "A photo of a RED\n bird!", "the bird's x-ray", "don't, bird", "two photos: two"],
)
def test_a_text_of_known_words_stays_as_it_is(text: str) -> None:
    assert read(f" {text}  ") == (f" {text}  ", [])


@pytest.mark.parametrize(
    ("text", "kept", "unknown"),
    [
        ("red brid", "red ", ["brid"]),
        ("xyzzyx", "", ["xyzzyx"]),
        ("A photo of two brids.", "", ["brids"]),
        ("Brid, red; BRID!", ", red; !", ["BRID"]),
        ("red xyz\u00adzyx", "red ", ["xyzzyx"]),
        ("birdbath red", " red", ["birdbath"]),
        ("собака 犬 red", "  red", ["собака", "犬"]),
        ("photo", "photo", []),
        ("the of ?", "", []),
        ("???", "", []),
    ],
)
def test_unknown_words_are_taken_out(text: str, kept: str, unknown: list[str]) -> None:
    assert read(text) == (kept, unknown)


def test_of_a_long_text_all_unknown_words_are_named_and_the_first_compared() -> None:
    text = " ".join(f"grn{n:02}" for n in range(20))
    encoder = FakeEncoder()
    encoder.known_words = KnownWords(["grn"])
    _, unknown = understood(text, encoder)
    assert [each.word for each in unknown] == text.split()
    assert [each.nearest for each in unknown] == [("grn",)] * 16 + [()] * 4


def test_an_encoder_without_a_list_of_words_reads_any_text() -> None:
    assert understood("brid ???", RowEncoder()) == ("brid ???", ())


def test_unknown_words_are_said_with_near_ones() -> None:
    unknown = [
        UnknownWord("xyzzyx", ()),
        UnknownWord("gren", ("green",)),
        UnknownWord("brid", ("bird", "bride", "braid")),
    ]
    said = "no such word: xyzzyx, gren (did you mean green?), "
    assert say_unknown(unknown) == f"{said}brid (did you mean bird, bride or braid?)"
    assert unknown[1].to_dict() == {"word": "gren", "nearest": ["green"]}


class Counting:
    """The tiny model, and the texts that it was given."""

    def __init__(self) -> None:
        self.model = tiny_model()
        self.name, self.vocabulary = "tiny", self.model.vocabulary
        self.known_words = self.model.known_words
        self.texts: list[str] = []

    def encode_text(self, texts: list[str]) -> Encoding:
        self.texts += texts
        return self.model.encode_text(texts)

    def encode_image(self, images: list) -> Encoding:
        return self.model.encode_image(images)


@pytest.fixture(scope="module")
def searcher(tmp_path_factory: pytest.TempPathFactory) -> Searcher:
    encoder = Counting()
    place = str(tmp_path_factory.mktemp("typed") / "tiny.lex")
    index = open_index(place, create=True, vocabulary=encoder.vocabulary, model="tiny")
    index.add(
        [Document(name) for name in "abc"], encoder.encode_image([picture(n) for n in range(3)])
    )
    index.commit()
    return Searcher(encoder, index)


@pytest.mark.parametrize("fusion", [None, *FUSIONS])
@pytest.mark.parametrize("text", ["xyzzyx", "a photo of a hrose", "bicyc"])
def test_unknown_words_alone_find_nothing_without_texts(
    searcher: Searcher, text: str, fusion: str
) -> None:
    searcher.model.texts.clear()
    answer = searcher.answer(Query(text=text, fusion=fusion), explain=True)
    assert (answer.hits, answer.words, answer.legs) == ([], [], ())
    assert [each.word for each in answer.unknown] == [text.split()[-1]]
    assert searcher.model.texts == []
    if fusion is not None:
        assert answer.fusion.name == fusion
    hit = searcher.explain(Query(text=text, fusion=fusion), "a")
    assert (hit.score, hit.rank, hit.explanation.matches) == (0.0, None, ())


def test_the_nearest_words_are_named(searcher: Searcher) -> None:
    (unknown,) = searcher.answer(Query(text="a hrose")).unknown
    assert unknown == UnknownWord("hrose", ("horse",))


def test_the_known_words_are_asked_for_as_though_they_stood_alone(searcher: Searcher) -> None:
    alone = searcher.answer(Query(text="red dog"), explain=True)
    both = searcher.answer(Query(text="red xyzzyx dog"), explain=True)
    assert alone.hits
    assert both.hits == alone.hits
    assert [each.word for each in both.unknown] == ["xyzzyx"]


TERMS = dict.fromkeys(("red", "dog", "cat", "white", "horse"), 1.0)


@pytest.mark.parametrize(
    "rest", [{"image": picture(1)}, {"terms": TERMS}, {"terms": TERMS, "image": picture(1)}]
)
def test_an_unknown_text_adds_nothing_to_image_and_terms(searcher: Searcher, rest: dict) -> None:
    plain = searcher.answer(Query(**rest))
    answer = searcher.answer(Query(text="xyzzyx", **rest))
    assert plain.hits
    assert answer.hits == plain.hits
    assert [each.word for each in answer.unknown] == ["xyzzyx"]


def test_boosted_words_are_asked_for_beside_an_unknown_text(searcher: Searcher) -> None:
    answer = searcher.answer(Query(text="xyzzyx", boost={"red": 2.0}))
    assert answer.words == [("red", 2.0)]
    assert answer.legs == ("lexical",)


def test_bans_and_requirements_of_an_unknown_text(searcher: Searcher) -> None:
    query = Query(text="xyzzyx", ban=["red"], require=["dog"], filter="id = a")
    assert searcher.answer(query).hits == []
