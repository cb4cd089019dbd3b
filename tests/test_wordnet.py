from __future__ import annotations

import sys
from pathlib import Path

import pytest

from lexvla.errors import InputError
from source_tree import ROOT

sys.path.insert(0, str(ROOT / "scripts"))

from wordnet import Synset, WordNet

DATA = """\
  1 This is a licence.
00000001 03 n 01 entity 0 000 | that which is
00000002 05 n 02 animal 0 Beast 0 001 @ 00000001 n 0000 | a living thing; not a plant
00000003 05 n 01 cat 0 002 @ 00000002 n 0000 ~ 00000004 n 0000 | a pet "my cat sleeps"
00000004 05 n 02 tabby 0 tabby_cat 1 003 @ 00000003 n 0000 @ 00000006 n 0000 + 00000009 v 0101 | x
00000005 18 n 01 Tom 0 001 @i 00000003 n 0000 | a cat of a film
00000006 06 n 01 pet 0 001 @ 00000001 n 0000 | kept at home
00000007 18 n 01 man 0 001 @ 00000001 n 0000 | a male
00000008 14 n 0b men 0 a 0 b 0 c 0 d 0 e 0 f 0 g 0 h 0 i 0 j 0 000 | a force
"""
INDEX = """\
  1 This is a licence.
entity n 1 0 1 0 00000001
animal n 1 1 @ 1 1 00000002
beast n 1 1 @ 1 0 00000002
cat n 2 2 @ ~ 2 1 00000005 00000003
tabby n 1 1 @ 1 0 00000004
tabby_cat n 1 1 @ 1 0 00000004
tom n 1 1 @i 1 0 00000005
man n 1 1 @ 1 3 00000007
men n 1 0 1 1 00000008
wolf n 1 0 1 0 00000002
box n 1 0 1 0 00000006
fly n 1 0 1 0 00000002
colon n 1 0 1 1 00000001
cola n 1 0 1 0 00000006
"""
EXCEPTIONS = """\
cola colon
men man
tabby_catz tabby_cat
wolves unknown wolf
geese goose
"""
FILES = {"data.noun": DATA, "index.noun": INDEX, "noun.exc": EXCEPTIONS}


def save(folder: Path, **changed: str) -> Path:
    for name, text in (FILES | changed).items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def wordnet(tmp_path: Path) -> WordNet:
    return WordNet(save(tmp_path))


def test_a_sense_is_read(wordnet: WordNet) -> None:
    assert wordnet.synset("00000002") == Synset(
        offset="00000002",
        lemmas=("animal", "beast"),
        lexname=5,
        hypernyms=("00000001",),
        gloss="a living thing",
        spellings=("animal", "Beast"),
        full_gloss="a living thing; not a plant",
    )
    assert wordnet.synset("00000003").gloss == "a pet"
    tabby = wordnet.synset("00000004")
    assert tabby.lemmas == ("tabby", "tabby cat")
    assert tabby.hypernyms == ("00000003", "00000006")
    assert wordnet.synset("00000005").hypernyms == ("00000003",)
    assert len(wordnet.synset("00000008").lemmas) == 11
    assert [synset.offset[-1] for synset in wordnet.synsets()] == list("12345678")


def test_an_unknown_sense_is_refused(wordnet: WordNet) -> None:
    for method in (wordnet.synset, wordnet.ancestors):
        with pytest.raises(InputError, match="'00000099': no such noun sense"):
            method("00000099")


def test_senses_come_in_the_order_of_the_index(wordnet: WordNet) -> None:
    assert [synset.lemmas[0] for synset in wordnet.senses("Cat")] == ["tom", "cat"]
    assert wordnet.senses("tabby cat") == wordnet.senses("tabby_cat") != []
    assert wordnet.senses("dog") == []
    assert list(wordnet.lemmas())[4:7] == ["tabby", "tabby cat", "tom"]


@pytest.mark.parametrize(
    ("word", "base"),
    [
        ("cat", "cat"),
        ("Cats", "cat"),
        ("tabby cats", "tabby cat"),
        ("tabby catz", "tabby cat"),
        ("boxes", "box"),
        ("flies", "fly"),
        ("wolves", "wolf"),
        ("men", "man"),  # a lemma too, but a less known one
        ("cola", "cola"),
        ("geese", None),  # no lemma here
        ("dogs", None),
        ("s", None),
        ("", None),
    ],
)
def test_base_forms(wordnet: WordNet, word: str, base: str | None) -> None:
    assert wordnet.base_form(word) == base


def test_ancestors_are_counted_by_the_shortest_way(wordnet: WordNet) -> None:
    depths = wordnet.ancestors("00000004")
    assert list(depths.items()) == [
        ("00000004", 0),
        ("00000003", 1),
        ("00000006", 1),
        ("00000002", 2),
        ("00000001", 2),
    ]


def test_a_circle_of_senses_ends(tmp_path: Path) -> None:
    data = DATA.replace("entity 0 000 |", "entity 0 001 @ 00000002 n 0000 |")
    wordnet = WordNet(save(tmp_path, **{"data.noun": data}))
    assert wordnet.ancestors("00000001") == {"00000001": 0, "00000002": 1}


@pytest.mark.parametrize("name", list(FILES))
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    (save(tmp_path) / name).unlink()
    with pytest.raises(InputError, match=rf"{name}'.*cannot be read \(No such file"):
        WordNet(tmp_path)


@pytest.mark.parametrize(
    ("name", "before", "after", "line", "rule"),
    [
        ("data.noun", " | that which is", "", 2, "no noun sense"),
        ("data.noun", "03 n 01", "03 v 01", 2, "no noun sense"),
        ("data.noun", "03 n 01", "03 n 02", 2, "no noun sense"),
        ("data.noun", "03 n 01", "03 n 0x", 2, "no noun sense"),
        ("data.noun", "0 001 @ 00000001 n 0000", "0 001 @", 3, "no noun sense"),
        ("data.noun", "00000001 03", "1 03", 2, "no noun sense"),
        ("data.noun", "00000006 06 n", "00000005 06 n", 7, "sense 00000005 a second time"),
        ("data.noun", "@i 00000003", "@i 00000033", 6, "no sense 00000033"),
        ("index.noun", "entity n 1 0 1 0 00000001", "entity n", 2, "no noun and its senses"),
        ("index.noun", "cat n 2 2 @ ~ 2", "cat n x 2 @ ~ 2", 5, "no noun and its senses"),
        ("index.noun", "cat n 2 2 @ ~ 2", "cat n 3 2 @ ~ 2", 5, "3 senses and 2 offsets"),
        ("index.noun", "0 00000001", "0 00000077", 2, "no sense 00000077 in data.noun"),
        ("noun.exc", "men man", "men", 2, "a form without its base form"),
    ],
)
def test_a_damaged_line_is_named(
    tmp_path: Path, name: str, before: str, after: str, line: int, rule: str
) -> None:
    text = FILES[name]
    assert before in text
    save(tmp_path, **{name: text.replace(before, after, 1)})
    with pytest.raises(InputError, match=rf"{name}:{line}': damaged: {rule}"):
        WordNet(tmp_path)


def test_bytes_that_are_no_text_are_named(tmp_path: Path) -> None:
    path = save(tmp_path) / "noun.exc"
    path.write_bytes(b"men man\n\xff\xfe cat\n")
    with pytest.raises(InputError, match=r"noun\.exc:2': damaged: not UTF-8"):
        WordNet(tmp_path)
