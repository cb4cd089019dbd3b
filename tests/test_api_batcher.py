"""The model's thread: what waits together is encoded together, and answers stay apart."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="needs the server: pip install 'lexvla[serve]'")

from hypothesis import given, settings
from hypothesis import strategies as st

from lexvla.encoding import Encoding
from lexvla.errors import InputError
from lexvla_search.api.batcher import Batcher
from search_fakes import PICTURES, WORDS, FakeEncoder, MappingEncoder


class Gated(MappingEncoder):
    """Wait before the first call until told; refuse the text "bad"; note calls and threads."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.begun = threading.Event(), threading.Event()
        self.calls: list[list[Any]] = []
        self.threads: set[int] = set()

    def encode_text(self, texts: list[str]) -> Encoding:
        self.calls.append(list(texts))
        self.threads.add(threading.get_ident())
        self.begun.set()
        self.gate.wait(60)
        if "bad" in texts:
            raise InputError("bad", "is refused")
        return super().encode_text(texts)


def ask_together(model: Gated, batcher: Batcher, lists: list[list[str]]) -> list[Any]:
    """Ask for these texts at one time, while the model is busy with another."""
    with ThreadPoolExecutor(len(lists) + 1) as pool:
        first = pool.submit(batcher.encode_text, ["red"])
        assert model.begun.wait(60)
        others = []
        for number, texts in enumerate(lists, 1):
            others.append(pool.submit(batcher.encode_text, texts))
            while batcher.waiting < number:
                time.sleep(0.001)
        model.gate.set()
        first.result(60)
        return [other.exception(60) or other.result(60) for other in others]


def same(one: Encoding, other: Encoding) -> bool:
    return one.lexical.shape == other.lexical.shape and not (one.lexical != other.lexical).nnz


def test_texts_that_wait_go_through_the_model_together() -> None:
    model = Gated()
    batcher = Batcher(model)
    lists = [["blue"], ["red blue", "green"], ["white"]]
    made = ask_together(model, batcher, lists)
    assert model.calls == [["red"], ["blue", "red blue", "green", "white"]]
    assert len(model.threads) == 2
    for texts, encoding in zip(lists, made, strict=True):
        assert same(encoding, FakeEncoder().encode_text(texts))
    batcher.close()


def test_a_free_model_is_called_where_the_call_is_made() -> None:
    model = Gated()
    model.gate.set()
    batcher = Batcher(model)
    batcher.encode_text(["red"])
    batcher.encode_text(["blue"])
    assert model.threads == {threading.get_ident()}
    batcher.close()


def test_the_model_is_never_called_twice_at_once() -> None:
    class Counting(MappingEncoder):
        inside = most = 0

        def encode_text(self, texts: list[str]) -> Encoding:
            self.inside += 1
            self.most = max(self.most, self.inside)
            time.sleep(0.001)
            self.inside -= 1
            return super().encode_text(texts)

    model = Counting()
    batcher = Batcher(model)
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(batcher.encode_text, [["red"]] * 64))
    assert model.most == 1
    assert all(same(each, FakeEncoder().encode_text(["red"])) for each in made)
    batcher.close()


def test_one_bad_text_fails_alone() -> None:
    model = Gated()
    batcher = Batcher(model)
    good, bad, other = ask_together(model, batcher, [["blue"], ["bad"], ["green"]])
    assert isinstance(bad, InputError)
    assert same(good, FakeEncoder().encode_text(["blue"]))
    assert same(other, FakeEncoder().encode_text(["green"]))
    batcher.close()


def test_a_batch_has_a_limit() -> None:
    model = Gated()
    batcher = Batcher(model)
    ask_together(model, batcher, [["red"] * 40, ["blue"] * 40, ["green"] * 20])
    assert [len(call) for call in model.calls] == [1, 60, 40]
    batcher.close()


def test_closing_finishes_what_waits_and_takes_no_more() -> None:
    model = Gated()
    batcher = Batcher(model)
    with ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(batcher.encode_text, ["red"])]
        assert model.begun.wait(60)  # else both might go through the model together
        asked.append(pool.submit(batcher.encode_text, ["blue"]))
        while batcher.waiting < 1:
            pass
        closing = pool.submit(batcher.close)
        model.gate.set()
        closing.result(10)
        assert [len(each.result(10)) for each in asked] == [1, 1]
    with pytest.raises(RuntimeError):
        batcher.encode_text(["red"])


def test_all_else_is_the_models_own() -> None:
    model = MappingEncoder()
    batcher = Batcher(model)
    assert (batcher.name, batcher.vocabulary) == ("fake", model.vocabulary)
    assert batcher.patch_grid == model.patch_grid
    apple = PICTURES["apple"]
    assert np.array_equal(batcher.heatmap(apple, "red"), model.heatmap(apple, "red"))
    assert getattr(batcher, "encode_region", None) is None
    alone, together = batcher.encode_image([apple]), model.encode_image([PICTURES["lime"], apple])
    assert same(alone, together[1:])
    assert np.array_equal(alone.patches, together[1:].patches)
    batcher.close()


@settings(max_examples=30)
@given(st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=3), min_size=1, max_size=12))
def test_any_mix_of_threads_gets_its_own_answers(lists: list[list[str]]) -> None:
    batcher = Batcher(MappingEncoder())
    with ThreadPoolExecutor(len(lists)) as pool:
        made = list(pool.map(batcher.encode_text, lists))
    for texts, encoding in zip(lists, made, strict=True):
        assert same(encoding, FakeEncoder().encode_text(texts))
    batcher.close()
