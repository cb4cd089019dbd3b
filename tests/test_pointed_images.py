"""Images that documents point at: what may be read, from where, and how much of it."""

from __future__ import annotations

import base64
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from lexvla.errors import InputError
from lexvla_indexer import pointed_images
from lexvla_indexer.pointed_images import PointedImages, _is_public

DATA = bytes(range(256)) * 4


class _Handler(BaseHTTPRequestHandler):
    asked: list[str]

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        self.asked.append(self.path)
        parts = self.path.strip("/").split("/", 1)
        if parts[0] in ("to", "loop"):
            self.send_response(302)
            self.send_header("Location", parts[-1].replace("%7C", "/"))
            self.end_headers()
            return
        if parts[0] == "slow":
            threading.Event().wait(2)
        self.send_response(404 if parts[0] == "gone" else 200)
        if parts[0] != "endless":
            self.send_header("Content-Length", str(len(DATA) + (parts[0] == "short")))
        self.end_headers()
        with suppress(BrokenPipeError):
            self.wfile.write(DATA)


@pytest.fixture
def server() -> Iterator[tuple[str, list[str]]]:
    """Return a host with its port, and the paths that are asked for."""

    class Handler(_Handler):
        asked: list[str] = []  # noqa: RUF012 - one for each server

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as made:
        thread = threading.Thread(target=made.serve_forever, args=(0.05,))
        thread.start()
        yield f"127.0.0.1:{made.server_port}", Handler.asked
        made.shutdown()
        thread.join()


def fetched(images: PointedImages, url: str) -> bytes:
    fetch = images.open(url, "d")
    assert callable(fetch)
    return fetch()


def refused(images: PointedImages, value: str) -> str:
    with pytest.raises(InputError) as caught:
        fetched(images, value)
    assert caught.value.item == "d"
    return caught.value.rule


def test_a_url_is_fetched_from_an_allowed_host_only(server):
    host, asked = server
    images = PointedImages(private_hosts=[host])
    assert fetched(images, f" http://{host}/a b/\u00e9.png?x=1 ") == DATA
    assert asked == ["/a%20b/%C3%A9.png?x=1"]
    for other in (PointedImages(), PointedImages(["127.0.0.1", "example.org"])):
        said = f"its image is at {host}; --allow-host {host} allows fetching from there"
        assert refused(other, f"http://{host}/a") == said
    assert "has credentials" in refused(images, f"http://me:secret@{host}/a")
    assert "has the scheme ftp" in refused(images, "ftp://example.org/a")
    assert "not a valid URL" in refused(images, "http://example.org:port/a")
    assert len(asked) == 1


def test_a_private_address_is_not_fetched_unless_that_is_said(server):
    host, asked = server
    said = refused(PointedImages([host]), f"http://{host}/a")
    assert said.startswith("its image is at 127.0.0.1, which has the private address 127.0.0.1; ")
    assert "--allow-private-host 127.0.0.1" in said
    port = host.partition(":")[2]
    by_name = refused(PointedImages([f"localhost:{port}"]), f"http://localhost:{port}/a")
    assert "has the private address" in by_name
    assert not asked
    for address in (
        "169.254.169.254",
        "10.1.2.3",
        "[::1]",
        "[::ffff:10.0.0.1]",
        "[64:ff9b::a00:1]",
    ):
        assert "has the private address" in refused(PointedImages([address]), f"http://{address}/")


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1::1", True),
        ("64:ff9b::5db8:d822", True),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("2002:0a00:0001::1", False),
    ],
)
def test_what_is_public(address, public):
    assert _is_public(address) == public


def test_redirects_are_checked_again(server):
    host, asked = server
    images = PointedImages(["example.org"], [host])
    assert fetched(images, f"http://{host}/to/|b.png") == DATA
    assert asked == ["/to/%7Cb.png", "/b.png"]
    said = refused(images, f"http://{host}/to/http:||169.254.169.254|latest")
    assert said.startswith("its image is at 169.254.169.254; --allow-host")
    assert "not an http or https URL" in refused(images, f"http://{host}/to/file:|||etc|passwd")
    assert refused(images, f"http://{host}/loop") == "its image is behind more than 5 redirects"


def test_what_cannot_be_had(server, monkeypatch):
    host, _ = server
    images = PointedImages(private_hosts=[host, "127.0.0.1:9"])
    assert refused(images, f"http://{host}/gone") == "the server of its image says HTTP 404"
    assert refused(images, f"http://{host}/short") == "its image came only in part"
    assert "cannot be fetched" in refused(images, "http://127.0.0.1:9/")
    assert "cannot be fetched" in refused(images, f"https://{host}/")
    monkeypatch.setattr(pointed_images, "MAX_BYTES", 1000)
    for path in ("large", "endless"):
        assert refused(images, f"http://{host}/{path}") == "its image is larger than 1,000 bytes"
    monkeypatch.setattr(pointed_images, "SECONDS", 0.2)
    assert refused(images, f"http://{host}/slow") == "its image did not come within 0 seconds"


def test_the_address_that_was_checked_is_the_one_that_is_asked(server, monkeypatch):
    host, asked = server
    port = int(host.partition(":")[2])
    answers = iter([[(0, 0, 0, "", ("127.0.0.1", port))]])
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: next(answers, None))
    made = socket.create_connection

    def create_connection(address: tuple[str, int], timeout: float) -> socket.socket:
        assert address == ("127.0.0.1", port)
        monkeypatch.undo()
        return made(address, timeout)

    monkeypatch.setattr(socket, "create_connection", create_connection)
    images = PointedImages(private_hosts=[f"shop.example:{port}"])
    assert fetched(images, f"http://shop.example:{port}/a") == DATA
    assert asked == ["/a"]


def test_paths_stay_in_their_folder(tmp_path: Path):
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (root / "out").symlink_to(tmp_path)
    images = PointedImages(root=root)
    assert images.open("sub/a.png", "d") == root / "sub" / "a.png"
    assert images.open(str(root / "a.png"), "d") == root / "a.png"
    for value in ("../a.png", "sub/../../a.png", "/etc/passwd", "out/a.png"):
        with pytest.raises(InputError, match="leaves the folder of --image-root"):
            images.open(value, "d")
    with pytest.raises(InputError, match="is not a valid path"):
        images.open("a\0b", "d")
    with pytest.raises(InputError, match="--image-root DIR allows"):
        PointedImages().open("sub/a.png", "d")


def test_base64_is_decoded():
    images, text = PointedImages(), base64.b64encode(DATA).decode()
    assert images.open(text, "d") == DATA
    assert images.open(f"{text[:76]}\n{text[76:]}", "d") == DATA
    assert images.open(f"data:image/png;base64,{text}", "d") == DATA
    with pytest.raises(InputError, match="must hold base64"):
        images.open("data:image/png,abc", "d")
    with pytest.raises(InputError, match="is not valid base64"):
        images.open("data:image/png;base64,abc", "d")
