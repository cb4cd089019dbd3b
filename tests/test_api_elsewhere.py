"""A web page of another origin, in Chromium: it searches with a key and shows signed pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="needs the server: pip install 'lexvla[serve]'")
pytest.importorskip("selenium", reason="needs selenium: pip install selenium")

from starlette.applications import Starlette
from starlette.responses import HTMLResponse
from starlette.routing import Route

from api_fakes import new_index
from lexvla_search.api import Settings, create_app
from lexvla_search.api.keys import make_key
from page_fakes import missing, serving, start_chromium
from search_fakes import MappingEncoder

pytestmark = [
    pytest.mark.chromium,
    pytest.mark.skipif(missing() is not None, reason=missing() or ""),
]

CLIENT = """
const [server, key, done] = arguments;
const load = (src) => new Promise((resolve) => {
  const image = new Image();
  image.onload = () => resolve(image.naturalWidth);
  image.onerror = () => resolve(null);
  image.src = src;
});
const headers = { "Content-Type": "application/json", "Authorization": `Bearer ${key}` };
const ask = async (path, body, method = "POST") => {
  const answer = await fetch(server + path, { method, headers, body: JSON.stringify(body) });
  return { status: answer.status, id: answer.headers.get("X-Request-ID"), ...await answer.json() };
};
(async () => {
  const found = await ask("/v1/search", { text: "red", k: 1, facets: ["label"] });
  const alike = await ask("/v1/search", { similar: [found.hits[0].id], k: 1 });
  const picture = found.hits[0].thumbnail_url;
  return {
    hit: found.hits[0].id,
    readsHeaders: Boolean(found.id),
    facets: found.facets.label.values.length,
    alike: alike.hits.length,
    signed: await load(server + picture),
    unsigned: await load(server + picture.split("&")[0]),
    failure: (await ask("/v1/search", { colour: 1 })).status,
    patched: (await ask("/v1/documents/apple", { metadata: { n: 1 } }, "PATCH")).status,
  };
})().catch((error) => error.message).then(done);
"""


def test_a_page_elsewhere_is_served_as_far_as_its_origin_and_key_go(tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    key, _ = make_key(keys, "read")
    address, pictures = new_index(tmp_path), tmp_path / "pictures"
    shop = Starlette(routes=[Route("/", lambda request: HTMLResponse("<title>Shop</title>"))])
    driver = start_chromium()

    def run(origin: str) -> Any:
        settings = Settings(address, keys, (pictures,), origins=(origin,), hosts=None)
        with serving(create_app(settings, MappingEncoder())) as server:
            return driver.execute_async_script(CLIENT, server.rstrip("/"), key)

    try:
        with serving(shop) as page:
            driver.get(page)
            assert run(page.rstrip("/")) == {
                **{"hit": "apple", "readsHeaders": True, "facets": 4, "alike": 1},
                **{"signed": 64, "unsigned": None, "failure": 422, "patched": 403},
            }
            assert run("https://other.example") == "Failed to fetch"
    finally:
        driver.quit()
