from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from lexvla.data.emoji import EmojiDrawings, content_columns, word_columns, words_of
from lexvla.errors import InputError
from lexvla.vocabulary import Vocabulary
from memory_fakes import NAMES, save_lists
from model_fakes import ITEMS, LONELY, PERSON, STYLES, save_drawings


@pytest.fixture(scope="module")
def drawings(drawings_folder: Path) -> EmojiDrawings:
    return EmojiDrawings(drawings_folder, list(STYLES))


def test_items_and_their_drawings(drawings: EmojiDrawings) -> None:
    assert [item.label for item in drawings.items] == [each[1] for each in ITEMS]
    assert drawings.items[0].tags == ("fruit", "red")
    assert "healthy food" in drawings.items[0].kinds
    assert [item.subgroup for item in drawings.items] == [each[4] for each in ITEMS]
    assert drawings.pixels.shape == (15, 64, 64, 4)
    for number, of_item in enumerate(drawings.by_item):
        assert len(of_item) == (1 if number == LONELY else 2)
        for rows in of_item:
            assert (drawings.item[rows] == number).all()
            assert len(set(drawings.style[rows])) == 1
            assert drawings.tone[rows].tolist() == ([0, 1, 2] if number == PERSON else [0])


def test_colours_are_found_in_the_drawings(drawings: EmojiDrawings) -> None:
    # Yellow says nothing of the person; that group names no colours.
    found = [item.colours for item in drawings.items]
    assert found == [("red",), ("green",), ("blue",), (), ("black",), ("white",)]


def test_a_colour_needs_a_fair_share_of_the_drawings(tmp_path: Path) -> None:
    save_drawings(tmp_path)
    with np.load(tmp_path / "drawings.npz") as archive:
        arrays = dict(archive)
    # Of both drawings of the apple a fifth is green, and of its flat drawing half is blue.
    for row in (0, 1):
        top, left = np.argwhere(arrays["pixels"][row, ..., 3])[0]
        rows, columns = (16, 48) if row == 0 else (48, 16)
        area = arrays["pixels"][row, top : top + rows, left : left + columns]
        if row == 0:
            area[:, : columns // 2, :3] = (50, 120, 220)
        area[: rows // 4, columns // 2 :, :3] = (90, 170, 60)
    np.savez(tmp_path / "drawings.npz", **arrays)
    assert EmojiDrawings(tmp_path, ["flat"]).items[0].colours == ("red", "blue")
    assert EmojiDrawings(tmp_path, list(STYLES)).items[0].colours == ("red",)


def test_two_drawings_come_from_two_sets(drawings: EmojiDrawings) -> None:
    items = np.array([0, 1, PERSON, LONELY])
    firsts = set()
    for seed in range(20):
        pairs = drawings.sample_drawings(items, np.random.default_rng(seed))
        assert pairs.shape == (2, 4)
        assert (drawings.item[pairs] == items).all()
        styles = drawings.style[pairs]
        assert (styles[0, :3] != styles[1, :3]).all()
        assert pairs[0, 3] == pairs[1, 3]
        firsts.add(int(styles[0, 0]))
    assert firsts == {0, 1}


def test_some_people_have_a_skin_tone(drawings: EmojiDrawings) -> None:
    rng = np.random.default_rng(0)
    rows = drawings.sample_drawings(np.full(600, PERSON), rng)
    counts = Counter(drawings.tone[rows].flatten().tolist())
    # A third of the draws are of any of the three drawings.
    assert counts[0] / 1200 == pytest.approx(7 / 9, abs=0.04)
    assert counts[1] / 1200 == pytest.approx(1 / 9, abs=0.03)
    assert counts[2] / 1200 == pytest.approx(1 / 9, abs=0.03)


def test_sampling_follows_the_generator(drawings: EmojiDrawings) -> None:
    items = np.arange(len(drawings.items))
    draws = [drawings.sample_drawings(items, np.random.default_rng(7)) for _ in range(2)]
    np.testing.assert_array_equal(*draws)
    texts = [
        [drawings.sample_text(item, rng) for item in drawings.items for _ in range(5)]
        for rng in (np.random.default_rng(7), np.random.default_rng(7))
    ]
    assert texts[0] == texts[1]


def test_the_words_of_a_text_are_the_items_own(drawings: EmojiDrawings) -> None:
    rng = np.random.default_rng(0)
    articles = {"a", "an", "the"}
    for item in drawings.items:
        own = words_of(" ".join([item.label, *item.tags, *item.kinds, *item.colours]))
        texts = {drawings.sample_text(item, rng) for _ in range(300)}
        assert len(texts) > 5
        for text in texts:
            assert text.strip()
            assert set(words_of(text)) - articles <= set(own)
            words = text.split()
            if words[0] in ("a", "an"):
                assert words[0] == ("an" if words[1][0] in "aeiou" else "a")


def test_captions_hold_every_word_that_a_text_can_have(drawings: EmojiDrawings) -> None:
    known = set(words_of(" ".join(drawings.captions())))
    rng = np.random.default_rng(1)
    for item in drawings.items:
        for _ in range(50):
            assert set(words_of(drawings.sample_text(item, rng))) - known <= {"a", "an", "the"}


def test_word_weights(drawings: EmojiDrawings) -> None:
    words = ["red", "apple", "fruit", "food", "love", "blue", "the"]
    weights = drawings.word_weights(Vocabulary([f"▁{word}" for word in words]))
    assert weights.dtype == np.float32
    assert weights[0].tolist() == [2, 2, 1, 0.5, 0, 0, 0]  # red: label before tag and colour
    assert weights[2].tolist() == [0, 0, 0, 0, 1, 2, 0]
    assert not weights[4].any()


def test_content_columns() -> None:
    vocabulary = Vocabulary(["▁the", "▁cafe", "▁dog", "▁8"])
    assert content_columns("The DOG of the Café, dog 8!", vocabulary) == [1, 2, 3]
    assert content_columns("the of", vocabulary) == []


def test_words_of() -> None:
    assert words_of("Piñata’s 1st ice-cream, ½") == ["pinata", "s", "1st", "ice", "cream", "1", "2"]


def test_an_item_that_the_chosen_sets_do_not_draw_is_left_out(drawings_folder: Path) -> None:
    round_ones = EmojiDrawings(drawings_folder, ["round"])
    assert [item.label for item in round_ones.items] == [e[1] for e in ITEMS[:LONELY]]
    assert (round_ones.style == 1).all()
    rows = round_ones.sample_drawings(np.arange(LONELY), np.random.default_rng(0))
    assert round_ones.item[rows].tolist() == [[0, 1, 2, 3, 4]] * 2
    flat = EmojiDrawings(drawings_folder, ["flat"])
    assert len(flat.items) == len(ITEMS)


@pytest.mark.parametrize("name", ["items.jsonl", "drawings.npz"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    save_drawings(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(InputError, match="make it with scripts/build_training_drawings") as caught:
        EmojiDrawings(tmp_path, list(STYLES))
    assert caught.value.item.endswith(name)


@pytest.mark.parametrize("name", ["items.jsonl", "drawings.npz"])
@pytest.mark.parametrize("keep", [0, 20, 300])
def test_a_truncated_file_is_named(tmp_path: Path, name: str, keep: int) -> None:
    save_drawings(tmp_path)
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError) as caught:
        EmojiDrawings(tmp_path, list(STYLES))
    assert name in str(caught.value)


def test_an_unknown_set_is_named(drawings_folder: Path) -> None:
    with pytest.raises(InputError, match=r"'noto': no such drawing set; there are flat, round"):
        EmojiDrawings(drawings_folder, ["flat", "noto"])


# Classes and nouns


@pytest.fixture
def listed(drawings_folder: Path, tmp_path: Path) -> EmojiDrawings:
    classes, nouns = save_lists(tmp_path)
    return EmojiDrawings(
        drawings_folder, list(STYLES), tones=False, classes=str(classes), nouns=str(nouns)
    )


def test_classes_follow_the_emoji(listed: EmojiDrawings, drawings: EmojiDrawings) -> None:
    assert (listed.drawn, drawings.drawn) == (len(ITEMS), len(ITEMS))
    assert listed.items[: len(ITEMS)] == drawings.items
    classes = listed.items[len(ITEMS) :]
    assert [each.label for each in classes] == list(NAMES)
    tabby = classes[0]
    assert (tabby.id, tabby.tags, tabby.kinds) == ("n00", ("tabby thing",), ("animal",))
    assert (tabby.gloss, tabby.words) == ("a tabby of some kind", {"tabby": 1.0, "animal": 0.5})
    assert (tabby.colours, tabby.subgroup) == ((), "")
    assert len(listed.by_item) == len(ITEMS)  # they have no drawings
    assert [noun for noun, _ in listed.nouns] == ["kitten", "orchard", "goblin"]
    assert drawings.nouns == []
    assert not any(each.gloss or each.words for each in drawings.items)


def test_without_tones_nobody_has_a_skin_tone(
    listed: EmojiDrawings, drawings: EmojiDrawings
) -> None:
    assert len(listed.pixels) == len(listed.item) == 11
    assert not listed.tone.any()
    np.testing.assert_array_equal(listed.pixels, drawings.pixels[drawings.tone == 0])
    assert listed.style_names == list(STYLES)


def test_texts_of_classes(listed: EmojiDrawings) -> None:
    rng = np.random.default_rng(0)
    counts = Counter(listed.sample_text(listed.items[len(ITEMS)], rng) for _ in range(1000))
    assert counts.keys() == {"tabby thing", "animal", "a tabby of some kind"}
    for text, share in (("tabby thing", 0.4), ("animal", 0.3), ("a tabby of some kind", 0.3)):
        assert counts[text] / 1000 == pytest.approx(share, abs=0.05)


def test_words_of_classes_are_captions_and_their_texts_are_not(
    listed: EmojiDrawings, drawings: EmojiDrawings
) -> None:
    more = ["tabby", "animal", "lorry", "teapot", "frog"]
    assert listed.captions() == [*drawings.captions(), *more]
    others = listed.other_texts()
    assert {"kitten", "goblin", "tabby thing", "artefact", "a lorry of some kind"} <= set(others)
    assert drawings.other_texts() == []


def test_word_weights_of_classes_are_twice_their_own(listed: EmojiDrawings) -> None:
    words = ["tabby", "animal", "lorry", "apple", "frog"]
    weights = listed.word_weights(Vocabulary([f"▁{word}" for word in words]))
    assert weights.shape == (10, 5)
    assert weights[6:].tolist() == [
        [2, 1, 0, 0, 0],
        [0, 0, 2, 0, 0],
        [0, 0, 0, 0, 0],  # of the teapot's no word is known
        [0, 0, 0, 0, 2],
    ]
    assert weights[0].tolist() == [0, 0, 0, 2, 0]


def test_word_columns() -> None:
    vocabulary = Vocabulary(["▁cat", "▁dog"])
    assert word_columns({"dog": 0.5, "cow": 1.0, "cat": 2.0}, vocabulary) == ([1, 0], [0.5, 2.0])
    assert word_columns({}, vocabulary) == ([], [])
