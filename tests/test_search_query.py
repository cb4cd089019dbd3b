"""Queries by text, image, regions and words."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import sparse

from lexvla.encoding import Encoding
from lexvla.errors import FilterSyntaxError, InputError, UnsupportedError
from lexvla.vocabulary import Vocabulary
from lexvla_search import Query
from lexvla_search.encoded_query import Constraints, encode_query
from lexvla_search.query import MAX_TEXT_LENGTH
from lexvla_search.words import PlainWords
from search_fakes import FakeEncoder, spot


@pytest.mark.parametrize("text", [None, "", "  ", "\n\t"])
def test_nothing_asked(text: str | None) -> None:
    query = Query(text=text)
    assert not query.is_scored
    assert query.describe() == "all documents"


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"boost": {"red": 2}}, "boost"),
        ({"legs": ["lexical"]}, "legs"),
        ({"fusion": "rrf"}, "fusion"),
        ({"min_score": 0.0}, "min_score"),
        ({"min_relevance": 0}, "min_relevance"),
    ],
)
def test_what_needs_scores(given: dict, named: str) -> None:
    with pytest.raises(InputError, match="needs something to score by") as caught:
        Query(filter="year > 2000", **given)
    assert caught.value.item == named
    Query(terms={"blue": 1}, **given)


def test_too_long() -> None:
    Query(text="a" * MAX_TEXT_LENGTH)
    with pytest.raises(InputError, match="at most 16,384 characters, not 49,999") as caught:
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
    assert Query(filter="year > 2000").describe() == "all documents, where year > 2000"


def test_text() -> None:
    encoding = encode_query(Query(text="red heart"), FakeEncoder()).encoding
    assert len(encoding) == 1
    assert encoding.lexical.toarray()[0].tolist() == [1, 0, 0, 0, 0, 0]


def test_no_known_word() -> None:
    encoded = encode_query(Query(text="zebra"), FakeEncoder())
    assert encoded.legs == ("text",)
    assert encoded.encoding.lexical.shape == (1, 6)
    assert [each.word for each in encoded.unknown] == ["zebra"]
    assert encode_query(Query(text="zebra", boost={"red": 2}), FakeEncoder()).words == [("red", 2)]


def test_image_by_path_and_in_memory(tmp_path: Path) -> None:
    image = spot("red", (1, 2))
    image.save(tmp_path / "red.png")
    in_memory = encode_query(Query(image=image), FakeEncoder()).encoding
    for source in (tmp_path / "red.png", str(tmp_path / "red.png")):
        encoding = encode_query(Query(image=source), FakeEncoder()).encoding
        assert (encoding.lexical != in_memory.lexical).nnz == 0
    # Blank text beside an image is no text: forms send it.
    assert (
        encode_query(Query(text=" ", image=image), FakeEncoder()).encoding.lexical
        != in_memory.lexical
    ).nnz == 0


def test_bad_image(tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no image")
    for name in ("bad.png", "missing.png"):
        with pytest.raises(InputError, match=name):
            encode_query(Query(image=tmp_path / name), FakeEncoder())


def test_text_and_image_weigh_the_same() -> None:
    encoder = FakeEncoder()
    image = spot("blue", (0, 0), ground="blue")
    encoding = encode_query(Query(text="red", image=image), encoder).encoding
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
    plain = encode_query(Query(text="red", image=image), FakeEncoder()).encoding.lexical.toarray()
    short = encode_query(Query(text="red", image=image), Sparser()).encoding.lexical.toarray()
    assert short == pytest.approx(plain, abs=1e-6)


def vector(query: Query, encoder: FakeEncoder | None = None) -> list[float]:
    return encode_query(query, encoder or FakeEncoder()).encoding.lexical.toarray()[0].tolist()


def near(*values: float) -> object:
    return pytest.approx([*values, *[0] * (6 - len(values))], abs=1e-6)


def test_a_region_is_cut_out() -> None:
    image = spot("red", (1, 2), ground="blue")
    part = Query(image=image, region=(32, 16, 16, 16))
    assert vector(part) == vector(Query(image=image.crop((32, 16, 48, 32))))
    # Pixels that it touches belong to it.
    touched = Query(image=image, region=(32.5, 16.5, 14.5, 14.9))
    assert vector(touched) == vector(part)


class Coarse(FakeEncoder):
    """A model that reads nothing smaller than its patches."""

    def encode_image(self, images: list) -> Encoding:
        if min(images[0].size) < 8:
            raise InputError("<image>", "is smaller than a patch")
        return super().encode_image(images)


def test_a_region_that_is_too_small_is_named() -> None:
    query = Query(image=spot("red", (1, 2)), region=(1, 2, 3, 40))
    with pytest.raises(InputError, match=r"region \(1.0, 2.0, 3.0, 40.0\) .*smaller than a patch"):
        encode_query(query, Coarse())


@pytest.mark.parametrize("region", [(0, 0, 65, 1), (60, 0, 5, 1), (0, 63.5, 1, 1)])
def test_a_region_outside_of_the_image(region: tuple[float, ...]) -> None:
    with pytest.raises(InputError, match=r"region \(.*must lie within the image of 64 x 64"):
        encode_query(Query(image=spot("red", (1, 2)), region=region), FakeEncoder())


@pytest.mark.parametrize(
    "region",
    [
        (1, 2, 3),
        (1, 2, 3, math.nan),
        (0, 0, math.inf, 1),
        "1,2,3,4",
        (1, 2, 3, "4"),
        7,
        (True,) * 4,
    ],
)
def test_no_region(region: object) -> None:
    with pytest.raises(InputError, match="'region': must be four finite numbers"):
        Query(image="x.png", region=region)


def test_regions_without_size_place_or_image() -> None:
    for region in ((-1, 0, 2, 2), (0, 0, 0, 5), (0, 0, 5, -5)):
        with pytest.raises(InputError, match="its corner must be at least 0 and its size above 0"):
            Query(image="x.png", region=region)
    with pytest.raises(InputError, match="'region': needs an image"):
        Query(text="red", region=(0, 0, 1, 1))


def test_terms() -> None:
    assert vector(Query(terms={"red": 3, "Blue": 4})) == near(0.6, 0, 0.8)
    # Text and terms count alike, whatever the terms' weights are.
    half = math.sqrt(0.5)
    for weight in (0.001, 1, 1000):
        assert vector(Query(text="red", terms={"green": weight})) == near(half, half)


def test_a_query_keeps_its_own_plain_numbers() -> None:
    terms, region = {"red": np.float32(2)}, [np.int64(0), 0, 8, 8]
    query = Query(image=spot("red", (1, 2)), region=region, terms=terms)
    terms["green"] = np.float32(1)
    data = json.loads(json.dumps(query.to_dict()))
    assert (data["terms"], data["region"]) == ({"red": 2}, [0, 0, 8, 8])
    bounds = {"min_score": np.float32(0.5), "min_relevance": np.float64(0.25)}
    query = Query(text="red", k=np.int64(3), group_copies=np.float32(0.5), **bounds)
    data = json.loads(json.dumps(query.to_dict()))
    assert [data[name] for name in ("k", "group_copies", *bounds)] == [3, 0.5, 0.5, 0.25]


def test_boosts() -> None:
    plain = vector(Query(text="red green"))
    boosted = vector(Query(text="red green", boost={"RED": 2}))
    assert boosted == near(2 * plain[0], plain[1])
    # A word that is not there comes in by the mean of those that are.
    added = vector(Query(text="red green", boost={"blue": 3}))
    assert added == near(plain[0], plain[1], 3 * plain[0])
    assert vector(Query(text="red", boost={"red": 0.5})) == near(0.5)


def test_a_missing_word_is_boosted_by_the_strongest_16() -> None:
    encoder = FakeEncoder(words=tuple(f"w{i}" for i in range(40)))
    terms = {f"w{i}": float(40 - i) for i in range(30)}
    row = np.array(vector(Query(terms=terms, boost={"w39": 2}), encoder))
    weights = np.array(list(terms.values())) / np.linalg.norm(list(terms.values()))
    assert row[39] == pytest.approx(2 * weights[:16].mean())
    assert row[:30] == pytest.approx(weights)


def test_bans_strike_words_from_the_query() -> None:
    plain = vector(Query(text="red green"))
    assert vector(Query(text="red green", ban=["Red"])) == near(0, plain[1])
    with pytest.raises(InputError, match="'red': nothing to look for is left without these words"):
        encode_query(Query(text="red", ban=["red"]), FakeEncoder())


def test_all_terms_of_a_word_are_banned() -> None:
    encoder = FakeEncoder()
    encoder.vocabulary = Vocabulary(["\u2581face", "face", "\u2581Face", "\u2581cat"])
    query = Query(terms={"cat": 1.0}, ban=["face"], require=["cat"])
    assert encode_query(query, encoder).constraints == Constraints(
        frozenset({0, 1, 2}), (frozenset({3}),)
    )
    assert vector(Query(terms={"face": 1}), encoder) == [1, 0, 0, 0]


def test_what_is_banned_is_not_asked_for() -> None:
    for other in ({"terms": {"red": 1.0}}, {"boost": {"red": 2.0}}, {"require": ["red"]}):
        query = Query(text="green", ban=["RED"], **other)
        with pytest.raises(InputError, match=f"'RED': is banned, but is in {next(iter(other))}"):
            encode_query(query, FakeEncoder())


@pytest.mark.parametrize("name", ["terms", "boost", "ban", "require"])
def test_unknown_words(name: str) -> None:
    words = {"zebra": 1.0} if name in ("terms", "boost") else ["zebra"]
    with pytest.raises(InputError, match=r"'zebra': the vocabulary has no such word$"):
        encode_query(Query(text="red", **{name: words}), FakeEncoder())
    words = {"gren": 1.0} if name in ("terms", "boost") else ["gren"]
    with pytest.raises(InputError, match=r"no such word; did you mean green\?"):
        encode_query(Query(text="red", **{name: words}), FakeEncoder())


@pytest.mark.parametrize("weight", [0, -1, math.nan, math.inf, 1e-7, 1e7, "2", True, None])
def test_bad_weights(weight: object) -> None:
    for name, what in (("terms", "a weight"), ("boost", "a factor")):
        rule = f"'red': {what} of {name} must be a number from 1e-06 to 1,000,000"
        with pytest.raises(InputError, match=rule):
            Query(text="red", **{name: {"red": weight}})


@pytest.mark.parametrize("name", ["ban", "require"])
def test_bad_words(name: str) -> None:
    for words in ("red", 7, {"red": 1}):
        with pytest.raises(InputError, match=f"'{name}': must be a list of words"):
            Query(text="red", **{name: words})
    for word, rule in (("", "not be blank"), ("\udcff", "valid Unicode"), (7, "a string")):
        with pytest.raises(InputError, match=f"a word of {name} must (be )?{rule}"):
            Query(text="red", **{name: [word]})
    with pytest.raises(InputError, match=f"'{name}': must be at most 1,024 words, not 1,025"):
        Query(text="red", **{name: ["red"] * 1025})


def test_bad_mappings() -> None:
    for name in ("terms", "boost"):
        with pytest.raises(InputError, match=f"'{name}': must be weights by word"):
            Query(text="red", **{name: ["red"]})


@pytest.mark.parametrize(
    ("given", "rule"),
    [
        ({"k": 0}, "'0': the number of hits must be at least 1"),
        ({"k": 10_001}, "'10001': the number of hits and the offset must be at most 10,000"),
        ({"k": 1, "offset": 10_000}, "at most 10,000 together"),
        ({"offset": -1}, "'-1': the offset must be at least 0"),
        ({"k": 2.0}, "'k': must be a whole number"),
        ({"k": True}, "'k': must be a whole number"),
        ({"min_score": math.nan}, "'min_score': must be a finite number"),
        ({"min_score": "1"}, "'min_score': must be a finite number"),
        ({"min_score": 10**400}, "'min_score': must be a finite number"),
        ({"min_relevance": 1.5}, "'min_relevance': must be a number from 0 to 1, not 1.5"),
        ({"min_relevance": -0.1}, "'min_relevance': must be a number from 0 to 1"),
        ({"min_relevance": math.nan}, "'min_relevance': must be a number from 0 to 1"),
        ({"similar": ["a", "b", "a"]}, "'a': similar must be different ids"),
        ({"similar": ["a"] * 300}, "'similar': must be at most 256 ids, not 300"),
        ({"legs": ()}, "legs must be a list of some of lexical, codes, dense"),
        ({"legs": "dense"}, "legs must be a list"),
        ({"legs": ("sparse",)}, "'sparse': a leg must be one of lexical, codes, dense"),
        ({"fusion": "best"}, "'best': a fusion must be one of rrf, weighted"),
        ({"fusion": 7}, "'7': a fusion must be a name or a Fusion"),
        ({"fusion": "dense", "legs": ("lexical",)}, "'dense': the fusion weighs this leg"),
        (
            {"fusion": "dense", "legs": ("lexical", "dense")},
            "'lexical': the query asks by this leg",
        ),
    ],
)
def test_bad_requests(given: dict, rule: str) -> None:
    with pytest.raises(InputError, match=rule):
        Query(text="red", **given)


def test_text_and_image_in_all_legs() -> None:
    class AllLegs(FakeEncoder):
        def encode_text(self, texts: list[str]) -> Encoding:
            made = super().encode_text(texts)
            return Encoding(made.lexical, None, codes([1, 0, 0.5]), np.array([[3, 0]], np.float32))

        def encode_image(self, images: list) -> Encoding:
            made = super().encode_image(images)
            return Encoding(made.lexical, None, codes([0, 0, 0.5]), np.array([[0, 2]], np.float32))

    def codes(row: list[float]) -> sparse.csr_array:
        return sparse.csr_array(np.array([row], np.float32))

    image = spot("blue", (0, 0))
    both = encode_query(Query(text="red", image=image), AllLegs()).encoding
    assert both.codes.toarray().tolist() == [[0.5, 0, 0.5]]
    assert both.dense[0] == pytest.approx([math.sqrt(0.5)] * 2)
    with_terms = encode_query(Query(text="red", terms={"green": 1}), AllLegs()).encoding
    assert with_terms.dense.tolist() == [[3, 0]]
    terms = encode_query(Query(terms={"green": 1}), AllLegs()).encoding
    assert (terms.codes, terms.dense) == (None, None)
    # A model without a list of words reads any text.
    encoder = AllLegs()
    assert encode_query(Query(text="zebra", legs=("dense",)), encoder).legs == ("text",)
    encoder.known_words = None
    assert encode_query(Query(text="zebra"), encoder).encoding.dense.tolist() == [[3, 0]]


def test_describe() -> None:
    assert Query(text="red heart").describe() == '"red heart"'
    query = Query(image="cat.png", ban=["face"], boost={"red": 2}, legs=("lexical",))
    assert query.describe() == "image cat.png, without face, with red x2, by lexical"
    query = Query(text="cat", image="a.png", region=(1, 2, 3, 4.5), require=["red"], filter="n > 1")
    said = '"cat" and image a.png at 1,2,3,4.5, only with red, where n > 1'
    assert query.describe() == said
    assert Query(terms={"red": 2, "cat": 0.5}, fusion="rrf").describe() == (
        "words red 2, cat 0.5, fused by rrf (constant 60)"
    )
    assert Query(image=spot("red", (1, 2))).describe() == "the query's image"
    assert Query(image="the cat.png").describe() == "image the cat.png"
    assert Query(text="cat", ban=["face"]).describe() == (
        '"cat", without face (boosts and bans change words, not codes or dense vectors)'
    )


def test_plain_values() -> None:
    query = Query(text="cat", image=b"...", terms={"red": 2}, ban=["face"], fusion="rrf", k=3)
    data = json.loads(json.dumps(query.to_dict()))
    assert data == {
        "text": "cat",
        "image": "the query's image",
        "region": None,
        "terms": {"red": 2},
        "similar": {},
        "boost": {},
        "ban": ["face"],
        "require": [],
        "filter": None,
        "legs": None,
        "fusion": {"name": "rrf", "constant": 60.0, "weights": None, "depth": 100},
        "text_fields": None,
        "k": 3,
        "group_copies": False,
        "offset": 0,
        "min_score": None,
        "min_relevance": None,
        "sort": [],
        "facets": [],
        "after": None,
    }


class TestPlainWords:
    def test_weights_of_one(self) -> None:
        words = PlainWords(FakeEncoder().vocabulary)
        assert vector(Query(text="Red, green!"), words) == near(math.sqrt(0.5), math.sqrt(0.5))
        twice = vector(Query(text="red red zebra green"), words)
        assert twice == near(2 / math.sqrt(5), 1 / math.sqrt(5))
        assert encode_query(Query(text="zebra"), words).legs == ("text",)

    def test_words_are_found_without_their_accents(self) -> None:
        words = PlainWords(Vocabulary(["Café", "creme"]))
        found = encode_query(Query(text="cafe_crème noir"), words)
        assert sorted(word for word, _ in found.words) == ["Café", "creme"]
        assert [each.word for each in found.unknown] == ["noir"]

    def test_rows_of_the_codebook(self) -> None:
        class Codebook(FakeEncoder):
            def encode_words(self, words: list[str]) -> Encoding:
                return self.encode_text([f"{word} blue" for word in words])

        encoder = Codebook()
        words = PlainWords(encoder.vocabulary, encoder)
        assert words.name == encoder.name
        # red + blue and green + blue
        assert vector(Query(text="red zebra green"), words) == near(*np.array([1, 1, 2]) / 6**0.5)

    def test_images_need_a_model(self) -> None:
        words = PlainWords(FakeEncoder().vocabulary)
        with pytest.raises(UnsupportedError, match="an image needs a model"):
            encode_query(Query(image=spot("red", (1, 2))), words)
