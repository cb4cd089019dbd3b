"""Take the pictures of README.md and docs/page.md (needs Chromium and its driver).

    python scripts/take_pictures.py            # all of them
    python scripts/take_pictures.py page explained

The demo's index is used, and built first if the default model has none. Pictures show nothing but
the bundled images: Noto Emoji (Apache-2.0) and photographs (CC0 or public domain).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

from PIL import Image
from selenium.webdriver import ActionChains

from lexvla import LexVLA
from lexvla.data.demo_corpus import load_demo_corpus
from lexvla_search.api import Settings, create_app
from lexvla_search.cli import main as lexvla

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from page_fakes import Page, serving, start_chromium  # noqa: E402 - the tests' driver of the page

TARGET = ROOT / "docs" / "figures"
BROUGHT = "smiling cat with heart-eyes"


def prepare_demo() -> str:
    """Build the demo's index where there is none; return its address."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        lexvla(["demo", "--json"])
    return str(json.loads(printed.getvalue())["index"])


def drawing(label: str) -> Image.Image:
    """Return one of the drawings, enlarged."""
    (image,) = (item.image for item in load_demo_corpus("emoji") if item.label == label)
    return image.resize((360, 360), Image.Resampling.LANCZOS)


def save(picture: Image.Image, name: str) -> None:
    """Save a picture in 256 colours."""
    path = TARGET / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path.relative_to(ROOT)}  {path.stat().st_size / 1000:.0f} kB")


def save_view(page: Page, name: str) -> None:
    """Save what the page shows."""
    page.until(lambda: page.driver.execute_script(_DRAWN))
    save(Image.open(io.BytesIO(page.driver.get_screenshot_as_png())), name)


_DRAWN = """
const views = [...document.querySelectorAll(".view")];
return views.every((view) => view.children.length) &&
  [...document.images].every((image) => !image.src || image.complete) &&
  document.getAnimations().length === 0;
"""


def open_with_heat(page: Page, label: str, word: str) -> None:
    """Open a hit, and point at one of its words."""
    card = next(card for card in page.all(".card") if card.accessible_name.startswith(label))
    card.click()
    page.until(lambda: page.all("#detail .view img"))
    shown = f"#detail li[data-word='{word}'] .word"
    page.until(lambda: page.all(shown))
    at = page.one(shown)
    ActionChains(page.driver).move_to_element(at).perform()
    page.until(lambda: page.all("#detail .heat"))


def take_page(page: Page) -> None:
    """A photograph among drawings, opened to the heat map of a word."""
    page.look(1280, 820)
    page.open("?q=cat")
    open_with_heat(page, "tabby cat", "cat")
    save_view(page, "page")


def take_words(page: Page) -> None:
    """A drawing, opened to the heat map of a word."""
    page.look(1280, 820)
    page.open("?q=red+heart")
    open_with_heat(page, "red heart", "heart")
    save_view(page, "page/words")


def take_dark(page: Page) -> None:
    """A word boosted and a word banned, in dark mode."""
    page.look(1280, 820, dark=True)
    page.open("?q=cat&boost=heart:2&ban=tear")
    save_view(page, "page/dark")


def take_region(page: Page) -> None:
    """A region of an image that was dropped."""
    page.look(1280, 820)
    page.open()
    page.bring(drawing(BROUGHT), "drop")
    page.until(lambda: page.one("#region").is_enabled())
    stage = page.one("#stage")
    drag = ActionChains(page.driver).move_to_element_with_offset(stage, -90, -75)
    drag.click_and_hold().move_by_offset(180, 90).release().perform()
    page.settle()
    save_view(page, "page/region")


def take_phone(page: Page) -> None:
    """The hits, and one of them opened, on a phone."""
    page.look(390, 844, mobile=True)
    page.open("?q=flower&ban=pink")
    save_view(page, "page/phone")
    page.one(".card").click()
    page.until(lambda: page.all("#detail .view img"))
    page.until(lambda: page.all("#detail section:nth-of-type(2) li"))
    save_view(page, "page/phone-open")


OF_THE_PAGE: dict[str, Callable[[Page], None]] = {
    "page": take_page,
    "words": take_words,
    "dark": take_dark,
    "region": take_region,
    "phone": take_phone,
}


def take_explained(address: str) -> None:
    """Draw a hit's score as bars beside its heat map, as ``lexvla explain --picture`` does."""
    drawn = TARGET / "explained.png"
    lexvla(["explain", "photo-cat", "photo of a cat", "--index", address, "--picture", str(drawn)])
    save(Image.open(drawn), "explained")


def main() -> None:
    """Take the pictures that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    names = [*OF_THE_PAGE, "explained"]
    parser.add_argument("picture", nargs="*", help=f"{', '.join(names)}; all if none is named")
    wanted = parser.parse_args().picture or names
    if unknown := set(wanted) - set(names):
        parser.error(f"unknown picture: {', '.join(sorted(unknown))}")
    address = prepare_demo()
    if "explained" in wanted:
        take_explained(address)
    settings = Settings(address, images=Path(f"{address}.images"))
    driver = start_chromium()
    try:
        with serving(create_app(settings, LexVLA.from_pretrained())) as url:
            for name, take in OF_THE_PAGE.items():
                if name in wanted:
                    take(Page(driver, url))
    finally:
        driver.quit()


if __name__ == "__main__":
    main()
