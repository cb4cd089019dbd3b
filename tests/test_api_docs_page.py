"""The page of the API's description, in Chromium and without a network."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="needs the server: pip install 'lexvla[serve]'")
pytest.importorskip("selenium", reason="needs selenium: pip install selenium")

from api_fakes import new_index
from lexvla_search.api import Settings, create_app
from page_fakes import Page, missing, serving, start_chromium
from search_fakes import MappingEncoder

pytestmark = [
    pytest.mark.chromium,
    pytest.mark.skipif(missing() is not None, reason=missing() or ""),
]


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    address = new_index(tmp_path)
    driver = start_chromium()
    try:
        with serving(create_app(Settings(address), MappingEncoder())) as at:
            yield Page(driver, at)
    finally:
        driver.quit()


def test_the_page_lists_all_operations_and_sends_their_examples(page: Page) -> None:
    page.driver.get(page.address + "docs")
    page.until(lambda: page.all(".opblock"))
    described = page.driver.execute_async_script(
        "fetch('openapi.json').then((answer) => answer.json()).then(arguments[0])"
    )
    operations = sum(len(methods) for methods in described["paths"].values())
    assert len(page.all(".opblock")) == operations
    page.one("#operations-default-search_v1_search_post .opblock-summary-control").click()
    page.until(lambda: page.all(".opblock-body .execute"))
    assert "red heart" in page.one(".opblock-body textarea").text
    page.one(".opblock-body .execute").click()
    page.until(lambda: page.all(".live-responses-table .response-col_status"))
    assert page.text(".live-responses-table tbody .response-col_status").startswith("200")
    assert "good_match" in page.text(".live-responses-table tbody .highlight-code")
    assert [url for url in page.requested() if not url.startswith((page.address, "data:"))] == []
    assert page.complaints() == []
