"""The page's files: nothing from elsewhere, nothing read as HTML, colours that can be read."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

STATIC = Path(__file__).parent.parent / "search" / "lexvla_search" / "api" / "static"
SCRIPTS = sorted(STATIC.glob("*.js"))
HTML = (STATIC / "index.html").read_text()
CSS = (STATIC / "style.css").read_text()

# Text on a ground, by the names of style.css; 4.5 is what WCAG 2.2 asks for text (AA).
TEXTS = [
    (ink, ground) for ink in ("ink", "quiet", "accent", "ban") for ground in ("ground", "card")
] + [
    ("ink", "wash"),
    ("accent", "wash"),
    ("quiet", "wash"),
    ("boost", "boost-wash"),
    ("ban", "ban-wash"),
    ("on-accent", "accent"),
]


def colours(scheme: str) -> dict[str, str]:
    light, dark = CSS.split("@media (prefers-color-scheme: dark)", 1)
    found = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", light))
    if scheme == "dark":
        found.update(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", dark))
    return found


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    darker, lighter = sorted((luminance(a), luminance(b)))
    return (lighter + 0.05) / (darker + 0.05)


def test_contrast_is_that_of_the_standard() -> None:
    assert contrast("#ffffff", "#000000") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_can_be_read(scheme: str) -> None:
    named = colours(scheme)
    ratios = {pair: contrast(named[pair[0]], named[pair[1]]) for pair in TEXTS}
    assert {pair: ratio for pair, ratio in ratios.items() if ratio < 4.5} == {}
    for ground in ("ground", "card"):
        assert contrast(named["edge"], named[ground]) >= 3  # of what can be pressed


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_read_no_string_as_html_or_code(path: Path) -> None:
    text = path.read_text()
    sinks = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|srcdoc"
    assert re.findall(sinks, text) == []
    assert re.findall(r"https?://", text) == []
    for name in re.findall(r'from "(.+?)"', text):
        assert (STATIC / name).resolve().parent == STATIC.resolve()
        assert (STATIC / name).is_file()


def test_the_page_names_only_files_of_its_own() -> None:
    named = re.findall(r'(?:src|href)="([^"#]+)"', HTML)
    assert sorted(named) == ["./", "static/app.js", "static/icon.svg", "static/style.css"]
    assert all((STATIC / name.removeprefix("static/")).exists() for name in named)
    assert re.findall(r"https?://|//[a-z]", HTML + CSS) == []
    assert re.findall(r"<style|\sstyle=|\son[a-z]+=|<script(?! type=\"module\" src=)", HTML) == []


def test_the_policy_allows_no_inline_code_and_no_other_server() -> None:
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]+)"', HTML)
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == rules["style-src"] == rules["connect-src"] == "'self'"
    assert rules["require-trusted-types-for"] == "'script'"
    assert "unsafe" not in policy


def test_every_field_has_a_label_and_ids_are_unique() -> None:
    ids = re.findall(r'\bid="([^"]+)"', HTML)
    assert len(ids) == len(set(ids))
    referred = re.findall(r'(?:for|aria-controls|aria-labelledby|aria-describedby)="([^"]+)"', HTML)
    made = {"detail-title"}  # by detail.js
    assert set(referred) <= set(ids) | made
    asked = {
        name for path in SCRIPTS for name in re.findall(r'byId\("([^"]+)"\)', path.read_text())
    }
    assert asked <= set(ids) | made
