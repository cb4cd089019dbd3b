"""Batches of drawings and of pairs."""

from __future__ import annotations

import copy
import json
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lexvla.data.captions import read_captions
from lexvla.data.emoji import EmojiDrawings, words_of
from lexvla.errors import InputError
from lexvla.preprocessing import preprocess
from lexvla.training import drawing_feed
from lexvla.training.drawing_feed import DrawingFeed
from lexvla.training.feed import Draw, own_words
from lexvla.training.objective import Losses
from lexvla.training.pair_feed import PairFeed
from lexvla.training.recipe import Data, Recipe, Run
from lexvla.vocabulary import Vocabulary
from model_fakes import ITEMS, STYLES, picture, tiny_model

APPLE, FROG, HEART, PERSON, BALL, BOOK = range(6)
WORDS = ("red", "apple", "fruit", "food", "heart", "blue", "love", "animal", "frog", "thing")
VOCABULARY = Vocabulary([f"▁{word}" for word in WORDS])
CONFIG = tiny_model().config


def recipe(output: Path, size: int, **loss: Any) -> Recipe:
    run = Run(steps=1, jitter=0.0, crop=1.0)
    return Recipe(str(output), {}, Data("", "", batch_size=size, workers=2), Losses(**loss), run)


@pytest.fixture(scope="module")
def drawings(drawings_folder: Path) -> EmojiDrawings:
    return EmojiDrawings(drawings_folder, list(STYLES))


@pytest.fixture
def feed(drawings: EmojiDrawings, tmp_path: Path) -> DrawingFeed:
    return DrawingFeed(drawings, recipe(tmp_path, 12), CONFIG, VOCABULARY)


def known(draw: Draw) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return what a draw tells beside its images and texts."""
    assert draw.items is not None
    assert draw.relevance is not None
    assert draw.image_words is not None
    assert draw.text_words is not None
    return draw.items, draw.relevance, draw.image_words, draw.text_words


def with_texts(
    feed: DrawingFeed, monkeypatch: pytest.MonkeyPatch, texts: dict[int, str]
) -> tuple[list[int], Draw]:
    """Return the items in their order, and a draw of all in which some have a given text."""
    labels = {each[1]: number for number, each in enumerate(ITEMS)}

    def sample(item: Any, _: Any) -> str:
        return texts.get(labels[item.label], item.label)

    monkeypatch.setattr(feed.drawings, "sample_text", sample)
    draw = feed.draw(3)
    return known(draw)[0][:6].tolist(), draw


# Drawings


def test_rows_are_labels_and_then_other_texts(
    feed: DrawingFeed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Put as they are; what they mean is the same however people put them."""
    said = feed.draw(1)
    monkeypatch.setattr(drawing_feed, "phrase", lambda text, _: text)
    draw = feed.draw(1)
    assert said.texts != draw.texts
    for one, other in zip(known(said), known(draw), strict=True):
        assert torch.equal(one, other)
    assert list(draw.other_texts) == []
    items, relevance, image_words, text_words = known(draw)
    assert sorted(items[:6].tolist()) == list(range(6))
    assert torch.equal(items[:6], items[6:])
    assert draw.texts[:6] == [ITEMS[number][1] for number in items[:6]]
    for number, text in zip(items[6:].tolist(), draw.texts[6:], strict=True):
        item = feed.drawings.items[number]
        own = words_of(" ".join([item.label, *item.tags, *item.kinds, *item.colours]))
        assert set(words_of(text)) <= {*own, "a", "an", "the"}
    assert relevance.shape == (12, 6)
    assert image_words.shape == text_words.shape == (12, len(WORDS))
    assert feed.classes == [each[0] for each in ITEMS]


def test_each_row_of_relevance_sums_to_1(feed: DrawingFeed) -> None:
    for seed in range(20):
        items, relevance, _, _ = known(feed.draw(seed))
        torch.testing.assert_close(relevance.sum(1), torch.ones(12))
        own = relevance.gather(1, items[:, None])[:, 0]
        assert (own > 0).all()
        assert (own[:6] >= 0.8).all()


def test_a_text_is_shared_out_over_the_items_that_bear_its_words(
    feed: DrawingFeed, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = {
        APPLE: "a red fruit",  # the apple's alone
        FROG: "the thing",  # of the kinds of the book too
        HEART: "love of the food",  # no item bears both: the own one has it all
        BALL: "billiards",  # no word that is known: anything bears none
        BOOK: "thing",
    }
    order, draw = with_texts(feed, monkeypatch, texts)
    _, relevance, _, _ = known(draw)
    others = {number: relevance[6 + order.index(number)].tolist() for number in texts}
    assert others[APPLE] == [1, 0, 0, 0, 0, 0]
    assert others[FROG] == [0, 0.5, 0, 0, 0, 0.5]
    assert others[HEART] == [0, 0, 1, 0, 0, 0]
    assert others[BALL] == pytest.approx([1 / 6] * 6)
    assert others[BOOK] == [0, 0, 0, 0, 0, 1]


def test_a_label_has_four_fifths_and_its_share_on_its_own_item(
    drawings: EmojiDrawings, tmp_path: Path
) -> None:
    """Labels such as "open book" have no known word here, and so all items bear them."""
    words = Vocabulary(["▁red", "▁frog", "▁blue"])
    feed = DrawingFeed(drawings, recipe(tmp_path, 12), CONFIG, words)
    items, relevance, _, _ = known(feed.draw(1))
    for number, shares in zip(items[:6].tolist(), relevance[:6], strict=True):
        expected = torch.zeros(6)
        if number in (APPLE, FROG, HEART):
            expected[number] = 1.0
        else:
            expected[:] = 0.2 / 6
            expected[number] += 0.8
        torch.testing.assert_close(shares, expected)


def test_a_word_of_many_items(tmp_path: Path, drawings: EmojiDrawings) -> None:
    """The frog is an animal; let the heart be one too."""
    items = list(drawings.items)
    items[HEART] = replace(items[HEART], tags=("animal",))
    both = EmojiDrawings.__new__(EmojiDrawings)
    both.__dict__.update(drawings.__dict__, items=items)
    feed = DrawingFeed(both, recipe(tmp_path, 12), CONFIG, VOCABULARY)
    own = own_words(["animal", "frog animal", "animal"], VOCABULARY)
    labels = torch.zeros(6, len(WORDS))
    drawn = torch.tensor([APPLE] * 6 + [FROG, FROG, BALL])
    shares = feed._relevance(torch.cat([labels, own]), drawn)
    assert shares[6].tolist() == [0, 0.5, 0.5, 0, 0, 0]
    assert shares[7].tolist() == [0, 1, 0, 0, 0, 0]
    # The drawn item bears the text whether it has the words or not.
    assert shares[8].tolist() == pytest.approx([0, 1 / 3, 1 / 3, 0, 1 / 3, 0])


def test_own_words(feed: DrawingFeed, monkeypatch: pytest.MonkeyPatch) -> None:
    order, draw = with_texts(feed, monkeypatch, {APPLE: "the red fruit, red", HEART: "of love"})
    _, _, image_words, text_words = known(draw)
    place = {number: order.index(number) for number in (APPLE, HEART)}
    apple = [2, 2, 1, 0.5, 0, 0, 0, 0, 0, 0]
    heart = [0, 0, 0, 0, 2, 2, 1, 0, 0, 0]
    for number, weights in ((APPLE, apple), (HEART, heart)):
        # Both drawings and the label have all words of the item.
        for rows in (image_words[:6], image_words[6:], text_words[:6]):
            assert rows[place[number]].tolist() == weights
    assert text_words[6 + place[APPLE]].tolist() == [1, 0, 1, 0, 0, 0, 0, 0, 0, 0]
    assert text_words[6 + place[HEART]].tolist() == [0, 0, 0, 0, 0, 0, 1, 0, 0, 0]


def test_views_are_of_the_items_and_follow_from_their_seed(
    drawings: EmojiDrawings, tmp_path: Path
) -> None:
    feed = DrawingFeed(drawings, recipe(tmp_path, 12), CONFIG, VOCABULARY)
    draw = feed.draw(1)
    views = draw.images(5, 16)
    assert views.shape == (12, 3, 16, 16)
    assert torch.equal(views, draw.images(6, 16))  # without jitter there is nothing of chance
    items = known(draw)[0].tolist()
    for name, number in (("red", APPLE), ("blue", HEART)):
        first, second = (views[row, :, 8, 8] for row, item in enumerate(items) if item == number)
        assert first.argmax() == second.argmax() == ("red", "green", "blue").index(name)
        assert not torch.equal(views[items.index(number)], views[6 + items.index(number)])
    strong = recipe(tmp_path, 12)
    strong = replace(strong, train=replace(strong.train, jitter=1.0))
    draw = DrawingFeed(drawings, strong, CONFIG, VOCABULARY).draw(1)
    assert torch.equal(draw.images(5, 16), draw.images(5, 16))
    assert not torch.equal(draw.images(5, 16), draw.images(6, 16))


def test_views_are_normalised_as_the_model_reads_images(
    drawings: EmojiDrawings, tmp_path: Path
) -> None:
    config = copy.copy(CONFIG)
    config.image_mean, config.image_std = [0.0, 0.0, 0.0], [0.5, 0.5, 0.5]
    feeds = (DrawingFeed(drawings, recipe(tmp_path, 4), c, VOCABULARY) for c in (CONFIG, config))
    views, plain = (feed.draw(1).images(1, 8) for feed in feeds)
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (CONFIG.image_mean, CONFIG.image_std))
    torch.testing.assert_close(views * std + mean, plain * 0.5)


def test_a_draw_follows_from_its_seed(drawings: EmojiDrawings, tmp_path: Path) -> None:
    feed = DrawingFeed(drawings, recipe(tmp_path, 4), CONFIG, VOCABULARY)
    first, same = feed.draw(7), feed.draw(7)
    assert first.texts == same.texts
    for one, other in zip(known(first), known(same), strict=True):
        assert torch.equal(one, other)
    assert torch.equal(first.images(1, 8), same.images(1, 8))
    assert len({tuple(feed.draw(seed).texts) for seed in range(10)}) > 5
    feed.load_state_dict(json.loads(json.dumps(feed.state_dict())))
    assert feed.draw(7).texts == first.texts
    feed.close()


def test_a_tree_of_drawings_is_their_subgroups(drawings: EmojiDrawings, tmp_path: Path) -> None:
    flat = DrawingFeed(drawings, recipe(tmp_path, 4, proxy=1.0), CONFIG, VOCABULARY)
    given = DrawingFeed(drawings, recipe(tmp_path, 4, proxy=1.0, tree=True), CONFIG, VOCABULARY)
    assert flat.parents is None
    # The order of their names: animal-amphibian, book-paper, food-fruit, game, heart, person.
    assert given.parents == [[2, 0, 4, 5, 3, 1]]


@pytest.mark.parametrize("size", [3, 7, 14])
def test_a_batch_of_drawings_is_even_and_no_more_than_there_are(
    drawings: EmojiDrawings, tmp_path: Path, size: int
) -> None:
    with pytest.raises(InputError, match=f"batch_size {size}.*must be even and at most 12"):
        DrawingFeed(drawings, recipe(tmp_path, size), CONFIG, VOCABULARY)


# Pairs

ROWS = [
    ("hat", ["a red hat", "the blue hat, red"], "things"),
    ("dog", ["the dog"], "animals"),
    ("man", ["a man", "and a horse"], "people"),
]


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Return a caption file of three pictures."""
    lines = []
    for number, (label, texts, above) in enumerate(ROWS):
        picture(number).save(tmp_path / f"{number}.png")
        line = {"image": f"{number}.png", "text": texts, "label": label, "class_path": above}
        lines.append(json.dumps(line) + "\n")
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(lines))
    return path


def pair_feed(pairs: Path, size: int = 3, train: Run | None = None, **loss: Any) -> PairFeed:
    settings = recipe(pairs.parent, size, **loss)
    if train is not None:
        settings = replace(settings, train=train)
    model = tiny_model()
    return PairFeed(read_captions(str(pairs)), settings, model.config, model.vocabulary, 0, 1)


def number_of(text: str) -> int:
    """Return the pair that a text is of."""
    return next(number for number, row in enumerate(ROWS) if text in row[1])


def test_a_batch_of_pairs_has_no_more_than_the_terms_ask_for(pairs: Path) -> None:
    with closing(pair_feed(pairs)) as feed:
        draw = feed.draw(1)
        assert sorted(map(number_of, draw.texts)) == [0, 1, 2]
        assert (draw.items, draw.relevance, draw.image_words, draw.text_words) == (None,) * 4
        assert (feed.classes, feed.parents) == ([], None)


@pytest.mark.parametrize("term", ["proxy", "image_pairs", "memory"])
def test_items_are_the_classes_in_order(pairs: Path, term: str) -> None:
    with closing(pair_feed(pairs, **{term: 1.0})) as feed:
        assert feed.classes == ["dog", "hat", "man"]
        draw = feed.draw(1)
        assert draw.items is not None
        names = [feed.classes[number] for number in draw.items]
        assert names == [ROWS[number_of(text)][0] for text in draw.texts]
        if term == "memory":
            assert draw.relevance is not None
            assert torch.equal(draw.relevance, torch.eye(3)[draw.items])
        else:
            assert draw.relevance is None
        assert feed.parents is None


def test_a_tree_of_pairs_is_what_lies_above_their_classes(pairs: Path) -> None:
    with closing(pair_feed(pairs, proxy=1.0, tree=True)) as feed:
        assert feed.parents == [[0, 2, 1]]


def test_a_texts_own_words_and_those_of_all_captions(pairs: Path) -> None:
    with closing(pair_feed(pairs, own_words=1.0)) as feed:
        draw = feed.draw(1)
        assert draw.image_words is not None
        assert draw.text_words is not None
        terms = feed.vocabulary.terms

        def words(row: Tensor) -> set[str]:
            assert set(row.tolist()) <= {0.0, 1.0}
            return {terms[column].removeprefix("▁") for column in row.nonzero()[:, 0]}

        of_pairs = [{"red", "blue", "hat"}, {"dog"}, {"man", "horse"}]
        of_texts = {
            "a red hat": {"red", "hat"},
            "the blue hat, red": {"blue", "hat", "red"},
            "the dog": {"dog"},
            "a man": {"man"},
            "and a horse": {"horse"},
        }
        for text, image, own in zip(draw.texts, draw.image_words, draw.text_words, strict=True):
            assert words(image) == of_pairs[number_of(text)]
            assert words(own) == of_texts[text]


def test_without_crop_and_jitter_views_are_what_encode_sees(pairs: Path) -> None:
    with closing(pair_feed(pairs)) as feed:
        draw = feed.draw(1)
        pictures = [picture(number_of(text)) for text in draw.texts]
        assert torch.equal(draw.images(3, 16), preprocess(pictures, 16))


def test_the_same_view_for_the_same_seed(pairs: Path) -> None:
    run = Run(steps=1, crop=0.5, jitter=0.4)
    found = []
    for _ in range(2):
        with closing(pair_feed(pairs, train=run)) as feed:
            draw = feed.draw(1)
            found.append(draw.images(3, 16))
            assert torch.equal(draw.images(3, 16), found[-1])
            other = draw.images(4, 16)
            assert not any(torch.equal(*each) for each in zip(other, found[-1], strict=True))
            assert draw.images(3, 24).shape == (3, 3, 24, 24)
    assert torch.equal(*found)


def test_pairs_go_on_from_their_place(pairs: Path) -> None:
    with closing(pair_feed(pairs, size=2)) as feed:
        for _ in range(3):
            feed.draw(0)
        state = json.loads(json.dumps(feed.state_dict()))
        expected = [feed.draw(0).texts for _ in range(4)]
    with closing(pair_feed(pairs, size=2)) as again:
        again.load_state_dict(state)
        assert [again.draw(0).texts for _ in range(4)] == expected
    assert np.unique([text for texts in expected for text in texts]).size > 2


def test_classes_need_labels(pairs: Path) -> None:
    lines = [json.loads(line) for line in pairs.read_text().splitlines()]
    pairs.write_text("".join(json.dumps({**line, "label": ""}) + "\n" for line in lines))
    pair_feed(pairs).close()
    with pytest.raises(InputError, match="without a label, which is required"):
        pair_feed(pairs, memory=1.0)
