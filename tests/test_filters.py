"""The filter grammar: what is read, what is refused and where, and what matches."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from filter_fakes import OPERATORS, filters, written
from lexvla.errors import FilterSyntaxError, InputError
from lexvla_indexer import Document
from lexvla_indexer.elastic import selection as elastic
from lexvla_indexer.embedded import selection as embedded
from lexvla_indexer.filters import And, Comparison, Filter, In, Not, Or, check_fields
from lexvla_indexer.lucene import selection as lucene


def is_equal(field: str, value: object) -> Comparison:
    return Comparison(field, "=", value)


A, B, C = is_equal("a", 1), is_equal("b", 2), is_equal("c", 3)


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        ("year>=2020", Comparison("year", ">=", 2020)),
        ("\n year\t>=\u00a02020 ", Comparison("year", ">=", 2020)),
        *((f"a {sign} 1", Comparison("a", sign, 1)) for sign in OPERATORS),
        ("a=1 and b=2 and c=3", And((A, B, C))),
        ("a=1 or b=2 and c=3", Or((A, And((B, C))))),
        ("(a=1 or b=2) and c=3", And((Or((A, B)), C))),
        ("a=1 and (b=2 and c=3)", And((A, And((B, C))))),
        ("not a=1 and b=2", And((Not(A), B))),
        ("not not a=1", Not(Not(A))),
        ("not(a=1 or b=2)", Not(Or((A, B)))),
        ("((a=1))", A),
        ('tag in (a, "b c", 3, 0.5, true)', In("tag", ("a", "b c", 3, 0.5, True))),
        ("tag in()", In("tag", ())),
        ("not id in (x)", Not(In("id", ("x",)))),
        ("a = -1", is_equal("a", -1)),
        ("a = 0", is_equal("a", 0)),
        ("a = -0.5e-3", is_equal("a", -0.0005)),
        ("a = 1e3", is_equal("a", 1000.0)),
        (f"a = {10**400}", is_equal("a", 10**400)),
        ("a = 2020-01-02", is_equal("a", "2020-01-02")),
        ("a = nan", is_equal("a", "nan")),
        ("a = Infinity", is_equal("a", "Infinity")),
        ("a = 1_000", is_equal("a", "1_000")),
        ("a = ٣", is_equal("a", "٣")),
        ("a = -", is_equal("a", "-")),
        ("a = false", is_equal("a", False)),
        ("a = True", is_equal("a", "True")),
        ('a = "true"', is_equal("a", "true")),
        ('a = "1"', is_equal("a", "1")),
        ('a = ""', is_equal("a", "")),
        ('a = "\\" \\\\ \\/ \\n \\u00e9 \\ud83d\\ude00"', is_equal("a", '" \\ / \n é \U0001f600')),
        ('a = "two\nlines"', is_equal("a", "two\nlines")),
        ("größe.in-cm = 日本", is_equal("größe.in-cm", "日本")),
        ("$[0].x = a/b:c*", is_equal("$[0].x", "a/b:c*")),
        ("2020 = 1", is_equal("2020", 1)),
        ('"and" = 1', is_equal("and", 1)),
        ('"a \\"b" = 1', is_equal('a "b', 1)),
        ("android = 1 or notes = 2", Or((is_equal("android", 1), is_equal("notes", 2)))),
    ],
)
def test_what_is_read(text, tree):
    # Python takes True for 1; their representations differ.
    assert repr(Filter.parse(text)) == repr(tree)


FIELD = "a field, 'not' or '('"
SIGN = "=, !=, <, <=, >, >= or 'in'"
PIECE = "a field, a value or a sign (strings stand in double quotes)"
NUMBER = "a number as JSON writes it, or a string in quotes"


@pytest.mark.parametrize(
    ("text", "column", "expected", "found"),
    [
        ("", 1, FIELD, "the end"),
        ("  ", 3, FIELD, "the end"),
        ("= 1", 1, FIELD, "'='"),
        ("a", 2, SIGN, "the end"),
        ("a b", 3, SIGN, "'b'"),
        ("a like b", 3, SIGN, "'like'"),
        ("a not in (b)", 3, SIGN, "'not'"),
        ("a =", 4, "a value", "the end"),
        ("a == 1", 4, "a value", "'='"),
        ("a <> 1", 4, "a value", "'>'"),
        ("a = and", 5, "a value", "'and'"),
        ("a = (1)", 5, "a value", "'('"),
        ("a = 1 b = 2", 7, "'and', 'or' or the end", "'b'"),
        ("a=1 AND b=2", 5, "'and', 'or' or the end", "'AND'"),
        ("a=1)", 4, "'and', 'or' or the end", "')'"),
        ('a = "x"y', 8, "'and', 'or' or the end", "'y'"),
        ("a=1 and", 8, FIELD, "the end"),
        ("a=1 or or b=1", 8, FIELD, "'or'"),
        ("not", 4, FIELD, "the end"),
        ("()", 2, FIELD, "')'"),
        ("true = a", 1, FIELD, "'true'"),
        ("(a=1", 5, "'and', 'or' or ')'", "the end"),
        ("(a=1 b", 6, "'and', 'or' or ')'", "'b'"),
        ("a in b", 6, "'('", "'b'"),
        ("a in (1", 8, "',' or ')'", "the end"),
        ("a in (1 2)", 9, "',' or ')'", "'2'"),
        ("a in (1,)", 9, "a value", "')'"),
        ("a in (,)", 7, "a value", "','"),
        ("a < true", 5, "a number or a string after <", "'true'"),
        ("a ! b", 3, "!=", "'!'"),
        ('a = "x', 5, 'a closing " of the string that starts here', "the end"),
        ('a = "x\\"', 5, 'a closing " of the string that starts here', "the end"),
        ("a = 'x'", 5, PIECE, '"\'"'),
        ("a = x\\n", 6, PIECE, repr("\\")),
        ("a = \x00", 5, PIECE, repr("\0")),
        ("a = x\x7f", 6, PIECE, repr("\x7f")),
        ("a = 007", 5, NUMBER, "'007'"),
        ("a = .5", 5, NUMBER, "'.5'"),
        ("a = 5.", 5, NUMBER, "'5.'"),
        ("a in (1, +5)", 10, NUMBER, "'+5'"),
        ("a = 1e999", 5, "a number nearer to 0", "'1e999'"),
        ("a = -1e999", 5, "a number nearer to 0", "'-1e999'"),
        ("a = " + "9" * 5000, 5, "a number nearer to 0", repr("9" * 37 + "...")),
        ('a = "x\\y"', 7, "an escape as in JSON", repr("\\y")),
        ('a = "\\ud800"', 5, "valid Unicode", repr('"\\ud800"')),
        ("ab\ud800 = 1", 3, "valid Unicode", repr("\ud800")),
        ("(" * 33 + "a=1", 33, "at most 32 levels of parentheses and 'not'", "more"),
        ("not " * 33 + "a=1", 129, "at most 32 levels of parentheses and 'not'", "more"),
    ],
)
def test_what_is_refused_and_where(text, column, expected, found):
    with pytest.raises(FilterSyntaxError) as caught:
        Filter.parse(text)
    message = str(caught.value)
    assert message.endswith(f", column {column}: expected {expected}, found {found}")
    if len(text) <= 120:
        assert message.startswith(f"filter {text!r}, ")
    assert len(message) < 400


def test_a_long_text_is_named_around_the_place():
    with pytest.raises(FilterSyntaxError) as caught:
        Filter.parse(" and ".join(["field = 1"] * 200) + " here = ' and " + "b = 2" * 100)
    assert "field = 1 here = ' and b = 2b = 2" in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("text", [None, 7, b"a=1"])
def test_only_text_is_read(text):
    with pytest.raises(FilterSyntaxError, match="must be a string, not"):
        Filter.parse(text)


def test_limits():
    Filter.parse("(" * 32 + "a=1" + ")" * 32)
    Filter.parse(" and ".join(["(not a=1)"] * 256))  # depth is of what stands in one another
    with pytest.raises(FilterSyntaxError, match=r"column 2049: .*at most 256 comparisons"):
        Filter.parse(" or ".join(["a= 1"] * 257))
    with pytest.raises(FilterSyntaxError, match="at most 16,777,216 characters, found 16,777,219"):
        Filter.parse("a=1" + " " * 2**24)
    text = "1,"
    assert len(Filter.parse(f"a in ({text * 199_999}1)").values) == 200_000
    with pytest.raises(FilterSyntaxError, match="at most 200,000 values, found more"):
        Filter.parse(f"a in ({text * 100_000}1) or a in ({text * 100_000}1)")


def test_hostile_texts_take_no_time():
    start = time.perf_counter()
    for text in ('a="' + "\\" * 10**6, '"' * 10**6, "a" * 10**6, " " * 10**6, "(" * 10**6):
        with pytest.raises(FilterSyntaxError):
            Filter.parse(text)
    assert time.perf_counter() - start < 5


@settings(max_examples=100)
@given(filters)
def test_what_is_written_is_read(tree):
    assert repr(Filter.parse(written(tree))) == repr(tree)


@settings(max_examples=100)
@given(st.text(alphabet='ab01.-"\\()=!<>, \nandortine\ud800é'))
def test_any_text_is_read_or_refused(text):
    try:
        tree = Filter.parse(text)
    except FilterSyntaxError as error:
        assert "column" in str(error)
    else:
        assert repr(Filter.parse(written(tree))) == repr(tree)


def test_json_writes_any_string_and_field():
    for name in ('a"b', "a\\b", "\0", "\x1f", "é", "\U0001f600", "", "in"):
        for is_ascii in (True, False):
            quoted = json.dumps(name, ensure_ascii=is_ascii)
            assert Filter.parse(f"{quoted} = {quoted}") == is_equal(name, name)


DOCUMENT = Document(
    "x1",
    uri="/a/b.png",
    text="two words",
    metadata={"year": 2020, "score": 0.5, "draft": True, "label": "cat", "tags": ["a", "b"]}
    | {"none": [], "zero": 0, "big": 2**53 + 1},
)


@pytest.mark.parametrize(
    ("text", "is_match"),
    [
        ("year = 2020", True),
        ("year = 2020.0", True),
        ("year != 2021", True),
        ("year != 2020", False),
        ("year < 2020.5 and year > 2019.5 and year >= 2020 and year <= 2020", True),
        ("year > 2020 or year < 2020", False),
        ("score < 1", True),
        # Types never mix.
        ('year = "2020"', False),
        ('year != "2020"', False),
        ('year < "3"', False),
        ("label > 0", False),
        ("draft = 1", False),
        ("draft != 1", False),
        ("draft > 0", False),
        ("zero = false", False),
        ("year in (true, a, 2021)", False),
        ("draft in (1)", False),
        ("draft = true and draft != false and draft in (false, true)", True),
        # Numbers are compared exactly.
        (f"big = {2.0**53!r}", False),
        (f"big > {2.0**53!r}", True),
        (f"big = {2**53 + 1}", True),
        # Strings
        ("label = cat", True),
        ("label = Cat", False),
        ("label >= ca and label < cb", True),
        ("label in (dog, cat)", True),
        ("label in ()", False),
        # Lists of strings
        ("tags = a", True),
        ("tags = c", False),
        ("tags != a", False),
        ("tags != c", True),
        ("tags != 3", False),
        ("none != a", True),
        ("none = a", False),
        ("tags in (c, b)", True),
        ("tags in (c, 1)", False),
        ("tags < b", False),
        # A field that is not there
        ("nowhere = 1", False),
        ("nowhere != 1", False),
        ("nowhere in (1)", False),
        ("not nowhere = 1", True),
        ("not nowhere != 1", True),
        # The document's own
        ('id = x1 and uri = /a/b.png and text = "two words"', True),
        ("id in (x1)", True),
        ("id >= x", True),
        ("id = 1", False),
        ("id != 1", False),
        ('fingerprint = ""', False),
        ("metadata = 1", False),
        # Precedence
        ("label = cat or label = dog and year = 1", True),
        ("(label = cat or label = dog) and year = 1", False),
        ("not label = dog and year = 2020", True),
    ],
)
def test_what_matches(text, is_match):
    assert Filter.parse(text).matches(DOCUMENT) is is_match


TIMES = ("2023-12-31T23:59:59", "2024-01-01T00:00:00", "2024-06-30T23:59:59", "2025-01-01T00:00:00")


@pytest.mark.parametrize(
    ("text", "matched"),
    [
        ("taken = 2024", (1, 2)),
        ("taken != 2024", (0, 3)),
        ("taken < 2024", (0,)),
        ("taken <= 2024", (0, 1, 2)),
        ("taken > 2024", (3,)),
        ("taken >= 2024", (1, 2, 3)),
        ('taken >= "2024"', (1, 2, 3)),
        ("taken = 2024-06", (2,)),
        ("taken <= 2024-06", (0, 1, 2)),
        ("taken > 2024-06", (3,)),
        ("taken = 2024-01-01", (1,)),
        ("taken < 2024-06-30", (0, 1)),
        ("taken <= 2024-06-30", (0, 1, 2)),
        ("taken in (2023, 2024-06-30)", (0, 2)),
        ("taken = 2024-06-30T23:59:59", (2,)),
        ("taken > 2024-06-30T00:00:00", (2, 3)),
        ("not taken = 2024", (0, 3)),
    ],
)
def test_a_year_month_or_day_is_the_whole_of_it(text, matched):
    photos = [Document(str(n), metadata={"taken": time}) for n, time in enumerate(TIMES)]
    chosen = Filter.parse(text)
    assert tuple(int(photo.id) for photo in photos if chosen.matches(photo)) == matched
    assert not any(chosen.matches(Document("x", metadata={"other": time})) for time in TIMES) or (
        text.startswith("not")
    )


def test_a_number_that_is_called_taken_stays_one():
    for text, matched in (("taken = 2024", True), ("taken != 2024", False), ("taken > 2023", True)):
        assert Filter.parse(text).matches(Document("a", metadata={"taken": 2024})) is matched
    listed = Document("a", metadata={"taken": ["2024", "x"]})
    assert Filter.parse('taken = "2024"').matches(listed)
    assert not Filter.parse('taken != "2024"').matches(listed)


def test_metadata_hides_what_is_the_documents_own():
    document = Document("x1", text="own", metadata={"id": 7, "text": ["a"]})
    for text in ("id = 7", "text = a", 'uri = ""', "not id = x1"):
        assert Filter.parse(text).matches(document)
    for text in ("id = x1", "text = own"):
        assert not Filter.parse(text).matches(document)


def test_of_many_fields_the_first_are_named() -> None:
    names = [f"f{n:02}" for n in range(60)]
    with pytest.raises(InputError) as caught:
        check_fields(Filter.parse("f00 = 1 or f = 1"), names.__contains__, lambda: names)
    there = f"there are id, uri, text, {', '.join(names[:50])} and 10 more"
    assert caught.value.item == "f"
    assert caught.value.rule == f"no document has such a field to filter by; {there}"
    check_fields(Filter.parse("f = 1"), lambda name: False, lambda: None)


ENGINES = {
    "matches": lambda tree: tree.matches(Document("d", metadata={"a": 1})),
    "embedded": embedded.condition,
    "elastic": lambda tree: elastic.selection(tree, list),
    "lucene": lambda tree: lucene.selection(tree, list),
}


@pytest.mark.parametrize("engine", ENGINES)
def test_an_operator_that_an_engine_lacks_is_an_error(engine) -> None:
    with pytest.raises((TypeError, KeyError), match="contains"):
        ENGINES[engine](Comparison("a", "contains", 1))
