"""``lexvla search --server`` prints what a search of the index prints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="needs the server: pip install 'lexvla[serve]'")

from api_fakes import new_index
from api_server import server
from lexvla_search.cli import main
from lexvla_search.client import ApiError
from search_fakes import PICTURES, MappingEncoder


def test_a_server_that_needs_a_key_names_the_option(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise ApiError(401, {"title": "A key is needed", "detail": "there is no such key"})

    monkeypatch.setattr("lexvla_search.client.Client.search", refuse)
    assert main(["search", "red", "--server", "http://127.0.0.1:1"]) == 1
    told = "A key is needed: there is no such key; give it by --key or $LEXVLA_KEY"
    assert capsys.readouterr().err == f"lexvla: error: {told}\n"


def test_a_server_is_searched_as_an_index_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lexvla_search.cli.arguments.load_model", lambda *_, **__: MappingEncoder())
    PICTURES["lime"].save(tmp_path / "lime.png")
    index = new_index(tmp_path)

    def told(*given: str) -> Any:
        status = main(["search", *given])
        printed = capsys.readouterr()
        # The server tells no path of its machine.
        return status, printed.out.replace(f"{tmp_path}/pictures/", ""), printed.err

    with server(index) as (_, port):
        url = f"http://127.0.0.1:{port}"
        for asked in (
            ["red", "-k", "2"],
            ["red gren", "--explain", "--weights", "lexical=1"],
            ["red", "--json", "--explain", "--boost", "red=2", "--filter", "label = 'a flag'"],
            ["--image", str(tmp_path / "lime.png"), "--json", "--legs", "lexical"],
            ["--term", "blue=1", "--min-score", "0.1", "--fusion", "rrf"],
            ["zebra"],
            ["--filter", "label = 'a flag'", "--facet", "label"],
            ["--similar", "apple", "--json", "--facet", "label"],
        ):
            there, here = told(*asked, "--server", url), told(*asked, "--index", index)
            assert there == here
        status, out, error = told("red", "--filter", "colour = 1", "--server", url)
        assert (status, out) == (1, "")
        assert "colour" in error
        assert told("red", "--index", index, "--server", url)[0] == 2
        assert told("red", "--no-model", "--server", url)[0] == 2
        image = ["--image", str(tmp_path / "lime.png")]
        assert told(*image, "--max-pixels", "999999", "--server", url)[0] == 2
        status, _, error = told(*image, "--max-pixels", "3", "--index", index)
        assert status == 1
        assert error.endswith("lime.png': has more than 3 pixels (64 x 64)\n")
        assert told(*image, "--max-pixels", "999999", "--index", index) == told(
            *image, "--index", index
        )
    assert told("red")[0] == 2
    assert told("red", "--server", url)[0] == 1  # it has ended
