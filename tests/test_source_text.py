"""Our fields in the text of ``_source``: whatever else is there stays as it is."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lexvla_indexer.elastic.source_text import _source_texts, spliced

OURS = {"lex": '{"a":1}', "vec": "[0.5,1]"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{}", '{"lex":{"a":1},"vec":[0.5,1]}'),
        ("{ \n}", '{"lex":{"a":1},"vec":[0.5,1] \n}'),
        ('{"p":12.50}', '{"p":12.50,"lex":{"a":1},"vec":[0.5,1]}'),
        (
            ' { "p" : 1e3 ,\n"big":12345678901234567890 } ',
            ' { "p" : 1e3 ,\n"big":12345678901234567890,"lex":{"a":1},"vec":[0.5,1] } ',
        ),
        ('{"lex":{"old":2},"p":"}\\"{"}', '{"p":"}\\"{","lex":{"a":1},"vec":[0.5,1]}'),
        ('{"l\\u0065x":1 , "vec":[[]]}', '{"lex":{"a":1},"vec":[0.5,1]}'),
    ],
)
def test_fields_are_put_in(text, expected):
    assert spliced(text, OURS, OURS) == expected


SPACE = st.text(" \t\n\r", max_size=2)
NUMBER = st.sampled_from(["12.50", "1e3", "-0.0", "0.12345678901234567890123", "9" * 30, "1E-7"])


@st.composite
def objects(draw, depth: int = 2) -> str:
    """Return an object's JSON text as other programs may write it."""
    keys = st.text(max_size=4).filter(lambda key: key not in OURS)
    values = NUMBER | st.sampled_from(["null", "true", '"\\u00e9\\/"', "[]", "{ }"])
    if depth:
        values |= objects(depth - 1) | objects(depth - 1).map(lambda text: f"[ {text},1.0]")
    members = []
    for key in draw(st.lists(keys, max_size=4, unique=True)):
        name = json.dumps(key, ensure_ascii=draw(st.booleans()))
        members.append(f"{draw(SPACE)}{name}{draw(SPACE)}:{draw(SPACE)}{draw(values)}{draw(SPACE)}")
    return "{" + ",".join(members) + (draw(SPACE) if not members else "") + "}"


@given(text=objects())
def test_what_is_put_in_and_taken_out_again_leaves_the_text(text):
    filled = spliced(text, OURS, OURS)
    parsed = json.loads(filled)
    assert {name: parsed.pop(name) for name in OURS} == {"lex": {"a": 1}, "vec": [0.5, 1]}
    assert parsed == json.loads(text)
    assert spliced(filled, OURS, OURS) == filled
    assert spliced(filled, OURS, {}) == text


@given(texts=st.lists(objects() | st.none(), max_size=4), space=SPACE)
def test_the_texts_of_a_multi_get_are_found(texts, space):
    docs = [
        f'{{"_id":"_source",{space}"found":false}}{space}'
        if text is None
        else f'{{"_id":"a","_source"{space}:{space}{text}{space},"fields":{{"_source":1}}}}'
        for text in texts
    ]
    answer = f'{space}{{"took":1,"docs"{space}:[{space}{f",{space}".join(docs)}{space}]}}'
    json.loads(answer)
    assert list(_source_texts(answer)) == [text or "" for text in texts]
