"""What becomes of odd files: the same by the command, in Python and over REST."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from api_fakes import served, text_of
from indexer_fakes import ColourEncoder
from lexvla.errors import InputError
from lexvla.images import open_image
from lexvla_indexer.path_ids import id_of_path
from lexvla_search import cli
from odd_files import EXCLUDED, IGNORED, LOSS, READ, REJECTED, odd_files, save_odd_files

pytestmark = pytest.mark.filterwarnings("ignore:Corrupt EXIF data", "ignore:Truncated File Read")

FILES = odd_files()
IMAGES = [name for name, (_, fate) in FILES.items() if fate not in (IGNORED, EXCLUDED)]


class Outcome(NamedTuple):
    """What a run said: counts, rejected items and losses by their ids, and all ids indexed."""

    counts: dict[str, Any]
    rejected: dict[str, str]
    losses: dict[str, str]


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outcome]:
    home = tmp_path_factory.mktemp("odd")
    save_odd_files(home / "p")
    place = home / "i.lex"
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as out:
        patch.setattr("lexvla_search.cli.arguments.load_model", lambda *_: ColourEncoder())
        assert cli.main(["index", str(home / "p"), "--index", str(place), "--json"]) == 0
    counts = json.loads(out.getvalue())
    lines = (place / "rejected.jsonl").read_text().splitlines()
    rejected = {each["item"]: each["rule"] for each in map(json.loads, lines)}
    yield Outcome(counts, rejected, {each["item"]: each["lost"] for each in counts["losses"]})


def said_of(fate: str) -> tuple[str | None, str | None]:
    """Return what is said of a rejected file, and of one read with a loss."""
    rejected = fate.removeprefix(REJECTED) if fate.startswith(REJECTED) else None
    return rejected, fate.removeprefix(LOSS) if fate.startswith(LOSS) else None


def check(expected: str | None, said: str | None) -> None:
    assert (said is None) == (expected is None), said
    assert expected is None or said is None or expected in said


def test_there_are_many() -> None:
    assert len(FILES) >= 80
    fates = [fate for _, fate in FILES.values()]
    assert min(fates.count(each) for each in (READ, IGNORED, EXCLUDED)) > 3


@pytest.mark.parametrize("name", IMAGES, ids=ascii)
def test_a_file_by_the_command(name: str, outcome: Outcome) -> None:
    rejected, lost = said_of(FILES[name][1])
    check(rejected, outcome.rejected.get(id_of_path(Path(name))))
    check(lost, outcome.losses.get(id_of_path(Path(name))))


def test_the_counts_of_the_command(outcome: Outcome) -> None:
    fates = [fate for _, fate in FILES.values()]
    rejected = sum(fate.startswith(REJECTED) for fate in fates)
    losses = sum(fate.startswith(LOSS) for fate in fates)
    counts = outcome.counts
    assert counts["added"] == fates.count(READ) + losses
    assert (counts["rejected"], counts["with losses"]) == (rejected, losses)
    assert counts["ignored_by_suffix"] == {".xmp": 1, ".mp4": 1, ".txt": 1, "": 1}
    assert counts["excluded_by_pattern"] == {
        ".*": 2,
        "@eaDir/": 1,
        "\\#recycle/": 1,
        "__MACOSX/": 1,
    }


@pytest.mark.parametrize("name", IMAGES, ids=ascii)
def test_a_file_in_python(name: str) -> None:
    data, fate = FILES[name]
    rejected, lost = said_of(fate)
    told: list[str] = []
    error = None
    try:
        assert open_image(data, warn=told.append).mode == "RGB"
    except InputError as refusal:
        error = refusal.rule
    check(rejected, error)
    if error is None:
        check(lost, told[0] if told else None)


def test_files_over_rest(tmp_path: Path) -> None:
    lines = [
        json.dumps({"id": id_of_path(Path(name)), "image": text_of(FILES[name][0])})
        for name in IMAGES
    ]
    expected = {
        id_of_path(Path(name)): said_of(FILES[name][1])[0]
        for name in IMAGES
        if said_of(FILES[name][1])[0] is not None
    }
    with served(tmp_path) as client:
        answer = client.put(
            "/v1/documents",
            content="\n".join(lines).encode(),
            headers={"Content-Type": "application/x-ndjson"},
        ).json()
    details = {each["id"]: each["detail"] for each in answer["errors"]}
    assert details.keys() == expected.keys()
    assert answer["indexed"] == len(IMAGES) - len(expected)
    for name, detail in details.items():
        if name != "huge.png":  # the server has a limit of its own
            check(expected[name], detail)
