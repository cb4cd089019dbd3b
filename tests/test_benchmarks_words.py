"""What is counted as the thing that a label is about."""

from __future__ import annotations

import sys

import pytest

from source_tree import ROOT

BENCHMARKS = ROOT / "benchmarks"
if not BENCHMARKS.is_dir():
    pytest.skip("needs a clone: benchmarks are in no distribution", allow_module_level=True)
sys.path.insert(0, str(BENCHMARKS))

from language_words import head_noun  # noqa: E402 - from benchmarks


@pytest.mark.parametrize(
    ("label", "noun"),
    [
        ("red heart", "heart"),
        ("cup with straw", "cup"),
        ("bento box", "box"),
        ("flag: France", "flag"),
        ("sun behind cloud", "sun"),
    ],
)
def test_head_nouns(label: str, noun: str) -> None:
    assert head_noun(label) == noun
