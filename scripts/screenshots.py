"""Make the pictures of docs/page.md: python scripts/screenshots.py (needs Chromium and its driver).

They show nothing but the bundled drawings (Noto Emoji, Apache-2.0), found by the default model.
"""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path

from PIL import Image
from selenium.webdriver import ActionChains

from lexvla import LexVLA
from lexvla.data.demo_corpus import load_demo_corpus
from lexvla_indexer import Document, open_index
from lexvla_search.api import Settings, create_app

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from page_fakes import Page, serving, start_chromium  # noqa: E402 - the tests' driver of the page

TARGET = ROOT / "docs" / "figures" / "page"
SUBGROUPS = ("heart", "cat-face", "food-fruit", "animal-marine", "animal-bug", "plant-flower")
BROUGHT = "smiling cat with heart-eyes"


def build_index(model: LexVLA, folder: Path) -> str:
    """Index some of the bundled drawings, by their pixels; return the index's address."""
    items = [item for item in load_demo_corpus("emoji") if item.subgroup in SUBGROUPS]
    for item in items:
        (folder / f"{item.id}.png").write_bytes(item.data)
    documents = [
        Document(
            item.id,
            uri=f"{item.id}.png",
            metadata={"label": item.label, "group": item.group, "tags": list(item.tags)},
        )
        for item in items
    ]
    address = str(folder / "drawings.lex")
    with open_index(address, create=True, vocabulary=model.vocabulary, model=model.name) as index:
        index.add(documents, model.encode_image([item.image for item in items]))
        index.commit()
    return address


def drawing(label: str) -> Image.Image:
    """Return one of the drawings, enlarged."""
    (image,) = (item.image for item in load_demo_corpus("emoji") if item.label == label)
    return image.resize((360, 360), Image.Resampling.LANCZOS)


def save(page: Page, name: str) -> None:
    """Save what the page shows, in 256 colours."""
    page.until(lambda: page.driver.execute_script(_DRAWN))
    shot = Image.open(io.BytesIO(page.driver.get_screenshot_as_png())).convert("RGB")
    path = TARGET / f"{name}.png"
    shot.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path.relative_to(ROOT)}  {path.stat().st_size / 1000:.0f} kB")


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
    page.until(lambda: page.all("#detail section:nth-of-type(2) li"))
    at = page.one(f"#detail li[data-word='{word}'] .word")
    ActionChains(page.driver).move_to_element(at).perform()
    page.until(lambda: page.all("#detail .heat"))


def shoot(page: Page) -> None:
    """Take all pictures."""
    page.look(1280, 820)
    page.open("?q=red+heart")
    open_with_heat(page, "beating heart", "heart")
    save(page, "words")

    page.look(1280, 820, dark=True)
    page.open("?q=cat&boost=heart:2&ban=tear")
    save(page, "dark")

    page.look(1280, 820)
    page.open()
    page.bring(drawing(BROUGHT), "drop")
    page.until(lambda: page.one("#region").is_enabled())
    stage = page.one("#stage")
    drag = ActionChains(page.driver).move_to_element_with_offset(stage, -90, -75)
    drag.click_and_hold().move_by_offset(180, 90).release().perform()
    page.settle()
    save(page, "region")

    page.look(390, 844, mobile=True)
    page.open("?q=flower&ban=pink")
    save(page, "phone")
    page.one(".card").click()
    page.until(lambda: page.all("#detail .view img"))
    page.until(lambda: page.all("#detail section:nth-of-type(2) li"))
    save(page, "phone-open")


def main() -> None:
    """Serve the drawings, and take the pictures."""
    TARGET.mkdir(parents=True, exist_ok=True)
    model = LexVLA.from_pretrained()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = Settings(build_index(model, folder), images=folder)
        driver = start_chromium()
        try:
            with serving(create_app(settings, model)) as address:
                shoot(Page(driver, address))
        finally:
            driver.quit()


if __name__ == "__main__":
    main()
