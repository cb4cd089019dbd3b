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
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from PIL import Image
from selenium.webdriver import ActionChains

from lexvla import LexVLA
from lexvla.data.demo_corpus import load_demo_corpus
from lexvla_search.api import Settings, create_app
from lexvla_search.api.keys import make_key
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
    picture = picture.convert("RGB")
    palette = picture.quantize(256)  # dithered, or a heat map has rings
    dither = Image.Dither.FLOYDSTEINBERG
    picture.quantize(palette=palette, dither=dither).save(path, optimize=True)
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
    """Open a hit, and press one of its words."""
    card = next(card for card in page.all(".card") if card.accessible_name.startswith(label))
    card.click()
    page.until(lambda: page.all("#detail .view img"))
    shown = f"#detail li[data-word='{word}'] .word"
    page.until(lambda: page.all(shown))
    page.one(shown).click()
    page.until(lambda: page.all("#detail .heat"))
    page.driver.execute_script("scrollTo(0, 0)")


def take_page(page: Page) -> None:
    """A photograph among drawings, opened to where a word was read."""
    page.look(1280, 820)
    page.open("?q=cat")
    open_with_heat(page, "tabby cat", "cat")
    save_view(page, "page")


def take_empty(page: Page) -> None:
    """What the page opens on."""
    page.look(1280, 820)
    page.open()
    page.until(lambda: page.all("#examples button"))
    save_view(page, "page/empty")


def take_results(page: Page) -> None:
    """The hits of a text."""
    page.look(1280, 820)
    page.open("?q=red+heart")
    save_view(page, "page/results")


def take_opened(page: Page) -> None:
    """A drawing, opened to where a word was read."""
    page.look(1280, 980)
    page.open("?q=red+heart")
    open_with_heat(page, "red heart", "heart")
    save_view(page, "page/opened")


def take_facets(page: Page) -> None:
    """Hits narrowed down to a value of their metadata."""
    page.look(1280, 820)
    page.open("?q=bird")
    page.press('[data-field=group] [data-choice*="animals-nature"]')
    save_view(page, "page/facets")


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
    page.one("#detail .word").click()
    page.until(lambda: page.all("#detail .heat"))
    save_view(page, "page/phone-open")


def take_keyed(page: Page) -> None:
    """A server with keys, before it has got one."""
    page.look(1280, 500)
    page.open()
    save_view(page, "page/keyed")


OF_THE_PAGE: dict[str, Callable[[Page], None]] = {
    "page": take_page,
    "empty": take_empty,
    "results": take_results,
    "opened": take_opened,
    "facets": take_facets,
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
    names = [*OF_THE_PAGE, "keyed", "explained"]
    parser.add_argument("picture", nargs="*", help=f"{', '.join(names)}; all if none is named")
    wanted = parser.parse_args().picture or names
    if unknown := set(wanted) - set(names):
        parser.error(f"unknown picture: {', '.join(sorted(unknown))}")
    address = prepare_demo()
    if "explained" in wanted:
        take_explained(address)
    settings = Settings(address, images=(Path(f"{address}.images"),))
    model = LexVLA.from_pretrained()
    driver = start_chromium()
    try:
        with serving(create_app(settings, model)) as url:
            for name, take in OF_THE_PAGE.items():
                if name in wanted:
                    take(Page(driver, url))
        if "keyed" in wanted:
            with tempfile.TemporaryDirectory() as folder:
                keys = Path(folder) / "keys.json"
                make_key(keys, "read")
                with serving(create_app(replace(settings, keys=keys), model)) as url:
                    take_keyed(Page(driver, url))
    finally:
        driver.quit()


if __name__ == "__main__":
    main()
