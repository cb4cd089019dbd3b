"""Spots of colour behind a server of this process, and a Chromium that looks at its page."""

from __future__ import annotations

import io
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from lexvla_indexer import Document, open_index
from search_fakes import MappingEncoder, spot

GET_CHROMIUM = "needs Chromium and its driver (Debian: apt-get install chromium chromium-driver)"
SPOT_COLOURS = ("red", "green", "blue", "yellow", "white")
HOSTILE = "<img src=x onerror=\"window.ran = 'label'\"><script>window.ran = 'script'</script>"
PATIENCE = 20  # seconds; a busy machine is slow, and nothing waits for long where all is well


def missing() -> str | None:
    """Say how to get the browser, if there is none."""
    return None if shutil.which("chromium") and shutil.which("chromedriver") else GET_CHROMIUM


def build_spots(folder: Path) -> str:
    """Index 12 spots of each colour, a text, and a hostile text; return the index's address."""
    pictures = folder / "pictures"
    pictures.mkdir()
    encoder = MappingEncoder()
    documents, images = [], []
    for colour in SPOT_COLOURS:
        for n in range(12):
            image = spot(colour, divmod(n + 2, 4))
            name = f"{colour}-{n:02}"
            image.save(pictures / f"{name}.png")
            metadata: dict[str, Any] = {
                "label": f"{colour} spot {n}",
                "colour": colour,
                "row": n // 4,
                "price": n,
            }
            documents.append(Document(name, uri=f"{name}.png", metadata=metadata))
            images.append(image)
    texts = [
        Document("note/1", text="A note about red."),
        Document("hostile", text=HOSTILE, metadata={"label": HOSTILE, "html": HOSTILE}),
    ]
    address = folder / "spots.lex"
    made = {"vocabulary": encoder.vocabulary, "model": encoder.name}
    with open_index(str(address), create=True, **made) as index:
        index.add(documents, encoder.encode_image(images))
        index.add(texts, encoder.encode_text(["red", "blue"]))
        index.commit()
    return str(address)


class Rehearsed:
    """Answer the next requests under a path as told, and all others by the application."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.answers: list[tuple[int, dict[str, str], dict[str, Any]]] = []
        self.seen: list[Any] = []  # the JSON of searches

    def next(self, status: int, headers: dict[str, str] | None = None, **problem: Any) -> None:
        self.answers.append((status, headers or {}, {"status": status, **problem}))

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["path"] != "/v1/search" or not self.answers:
            await self.app(scope, receive, send)
            return
        status, headers, problem = self.answers.pop(0)
        while (await receive()).get("more_body"):
            pass
        given = {"content-type": "application/problem+json", **headers}
        pairs = [(name.lower().encode(), value.encode()) for name, value in given.items()]
        await send({"type": "http.response.start", "status": status, "headers": pairs})
        await send({"type": "http.response.body", "body": json.dumps(problem).encode()})


@contextmanager
def serving(app: Any) -> Iterator[str]:
    """Serve an application on a free port of this machine; give its address."""
    import uvicorn

    config = uvicorn.Config(app, port=0, log_level="critical", timeout_graceful_shutdown=2)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        if not thread.is_alive():
            raise RuntimeError("the server did not start")
        time.sleep(0.02)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}/"
    finally:
        server.should_exit = True
        thread.join(timeout=60)


def start_chromium() -> webdriver.Chrome:
    os.environ["SE_OFFLINE"] = "true"  # Selenium must look for no driver elsewhere
    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    for argument in ("--headless=new", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(argument)
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(str(shutil.which("chromedriver")))
    return webdriver.Chrome(options=options, service=service)


class Page:
    """What a person sees of the page, and does."""

    def __init__(self, driver: webdriver.Chrome, address: str) -> None:
        self.driver = driver
        self.address = address

    def open(self, link: str = "") -> None:
        self.driver.get(self.address + link)
        self.settle()

    def look(self, width: int, height: int, dark: bool = False, mobile: bool = False) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile}
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})

    def one(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def until(self, holds: Callable[[], Any]) -> Any:
        waiting = WebDriverWait(self.driver, PATIENCE, 0.05, [StaleElementReferenceException])
        return waiting.until(lambda _: holds())

    def settle(self) -> None:
        """Wait for the search under way. It is marked before the click that starts it returns."""
        self.until(lambda: not self.all("#results[aria-busy]"))

    def search(self, text: str) -> None:
        self.one("#text").clear()
        self.one("#text").send_keys(text + "\n")
        self.settle()

    def press(self, selector: str) -> None:
        self.one(selector).click()
        self.settle()

    def open_hit(self, name: str) -> None:
        self.one(f'#hits li[data-id="{name}"] .card').click()
        self.until(lambda: self.all("#detail .parts"))

    def ids(self) -> list[str]:
        script = "return [...document.querySelectorAll('#hits li[data-id]')].map(e => e.dataset.id)"
        return self.driver.execute_script(script)

    def texts(self, selector: str) -> list[str]:
        script = "return [...document.querySelectorAll(arguments[0])].map(e => e.textContent)"
        return self.driver.execute_script(script, selector)

    def text(self, selector: str) -> str:
        (text,) = self.texts(selector)
        return text

    def link(self) -> str:
        return self.driver.execute_script("return decodeURIComponent(location.search)")

    def chips(self) -> list[str]:
        return [" ".join(chip.text.split("\n")[:-1]) for chip in self.all("#chips li")]

    def focused(self) -> WebElement:
        return self.driver.switch_to.active_element

    def bring(self, image: Image.Image, by: str) -> None:
        """Drop or paste an image."""
        data = io.BytesIO()
        image.save(data, "PNG")
        self.driver.execute_script(_BRING, list(data.getvalue()), by)
        self.settle()

    def requested(self) -> list[str]:
        """Return the addresses of all requests since the last call."""
        messages = [
            json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")
        ]
        return [
            message["params"]["request"]["url"]
            for message in messages
            if message["method"] == "Network.requestWillBeSent"
        ]

    def complaints(self) -> list[str]:
        """Return what the browser complained of since the last call, but answers with errors."""
        entries = self.driver.get_log("browser")
        texts = [entry["message"] for entry in entries if entry["level"] == "SEVERE"]
        return [text for text in texts if "the server responded with a status of" not in text]


_BRING = """
const files = new DataTransfer();
files.items.add(new File([new Uint8Array(arguments[0])], "brought.png", { type: "image/png" }));
const about = { bubbles: true, cancelable: true };
if (arguments[1] === "paste") {
  document.dispatchEvent(new ClipboardEvent("paste", { ...about, clipboardData: files }));
} else {
  document.dispatchEvent(new DragEvent("dragover", { ...about, dataTransfer: files }));
  document.dispatchEvent(new DragEvent("drop", { ...about, dataTransfer: files }));
}
"""
