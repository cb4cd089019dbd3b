"""The programs in docs/examples run."""

from __future__ import annotations

import ast
import re
import runpy
from pathlib import Path

import pytest
from PIL import Image

from search_fakes import FakeEncoder
from source_tree import ROOT

SHOP = ROOT / "docs" / "examples" / "shop.py"
TABLE = """sku,title,image,price,category,added
s1,Red & bold shoes,red.png,30,shoes,2024-05-01
s2,Red boots,darkred.png,80,boots,2024-06-01
s3,Blue shoes,blue.png,,shoes,2024-06-02
s4,Blue boots,blue.png,,boots,
"""


def test_shop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    assert len(SHOP.read_text("utf-8").splitlines()) <= 60
    monkeypatch.chdir(tmp_path)
    Path("table.csv").write_text(TABLE, encoding="utf-8")
    for colour in ("red", "darkred", "blue"):
        Image.new("RGB", (64, 64), colour).save(f"{colour}.png")
    shop = runpy.run_path(str(SHOP))
    shop["main"]("table.csv", "red", "added >= 2024-06-01", model=FakeEncoder())
    printed = capsys.readouterr().out.splitlines()
    assert re.match(r"<Hit 1\. 's2' .* 'Red boots'> (.*)", printed[0])[1] == (
        "{'price': 80.0, 'category': 'boots', 'added': '2024-06-01T00:00:00'}"
    )
    field, _, counts = printed[1].partition(" ")
    assert (field, ast.literal_eval(counts)["values"]) == (
        "category",
        [{"value": "boots", "count": 1}, {"value": "shoes", "count": 1}],
    )
    field, _, counts = printed[2].partition(" ")
    ranges = [(each["from"], each["count"]) for each in ast.literal_eval(counts)["ranges"]]
    assert (field, ranges, len(printed)) == ("price", [(None, 0), (50, 1), (100, 0)], 3)
    shop["main"]("table.csv", "red", None, "all", model=FakeEncoder())
    assert "'s3'" not in capsys.readouterr().out
    report = Path("all/report.html").read_text("utf-8")
    assert re.findall("<h2>(.*?)</h2>", report) == ["Red &amp; bold shoes", "Red boots"]
    assert report.count("data:image/jpeg;base64,") == 2
