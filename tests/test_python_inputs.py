"""Plain Python values go in as users have them; an error names the item."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from indexer_fakes import VOCABULARY, encode
from lexvla.batching import ahead, batches
from lexvla.errors import InputError
from lexvla.images import open_image
from lexvla_indexer import Document, open_index
from lexvla_indexer.filters import Filter
from lexvla_search.query import Query

SUMMER = timezone(timedelta(hours=2))


class TestDocuments:
    def test_none_is_absent(self) -> None:
        document = Document("a", uri=None, text=None, metadata={"price": None}, fingerprint=None)
        assert document == Document("a")
        assert document.metadata == Document("a", metadata=None).metadata == {}
        assert (document.uri, document.text, document.fingerprint) == ("", "", "")

    def test_a_document_without_text_is_committed(self, tmp_path: Path) -> None:
        with open_index(tmp_path / "i.lex", create=True, vocabulary=VOCABULARY) as index:
            index.add([Document("a", text=None, uri=Path("a") / "b.png")], encode([{0: 1.0}]))
            index.commit()
            (document,) = index.fetch(["a"]).documents
        assert (document.text, document.uri) == ("", str(Path("a/b.png")))

    @pytest.mark.parametrize(
        ("value", "kept"),
        [
            (np.int64(3), 3),
            (np.float32(0.5), 0.5),
            (np.bool_(True), True),
            (np.str_("cat"), "cat"),
            (date(2024, 6, 1), "2024-06-01"),
            (datetime(2024, 6, 1, 12), "2024-06-01T12:00:00"),
            (datetime(2024, 6, 1, 1, tzinfo=SUMMER), "2024-05-31T23:00:00+00:00"),
            (np.datetime64("2024-06-01"), "2024-06-01"),
            (np.datetime64("2024-06-01T12:00:00.5", "ns"), "2024-06-01T12:00:00.500000"),
        ],
    )
    def test_scalars_and_times(self, value: object, kept: object) -> None:
        stored = Document("a", metadata={"x": value}).metadata["x"]
        assert stored == kept
        assert type(stored) is type(kept)

    def test_ranges_order_times(self) -> None:
        noon = datetime(2024, 6, 1, 12, tzinfo=UTC)
        times = [noon, noon.astimezone(SUMMER) + timedelta(microseconds=1), noon + timedelta(1)]
        taken = [Document(str(i), metadata={"taken": time}) for i, time in enumerate(times)]

        def found(text: str) -> list[str]:
            return [each.id for each in taken if Filter.parse(text).matches(each)]

        assert found("taken >= 2024-06-01") == ["0", "1", "2"]
        assert found("taken < 2024-06-02") == ["0", "1"]
        assert found("taken > 2024-06-01T12:00:00+00:00") == ["1", "2"]
        assert found('taken <= "2024-06-01T12:00:00+00:00"') == ["0"]

    @pytest.mark.parametrize(
        ("value", "rule"),
        [
            ({"text": 3}, "its text must be a string, not int"),
            ({"uri": b"a"}, "its uri must be a string, not bytes"),
            ({"metadata": ["a"]}, "its metadata must be values by name, not list"),
            ({"metadata": {1: "a"}}, "names of metadata must be strings, not 1"),
            ({"metadata": {"x": {}}}, "metadata 'x' must be a string, number, .*, not dict"),
            (
                {"metadata": {"x": np.nan}},
                "metadata 'x' is nan; leave out a missing value, or give None",
            ),
            ({"metadata": {"x": np.datetime64("NaT")}}, "metadata 'x' is NaT; leave out"),
            ({"metadata": {"x": np.inf}}, "metadata 'x' is inf, but a number must be finite"),
        ],
    )
    def test_refused(self, value: dict, rule: str) -> None:
        with pytest.raises(InputError, match=f"'a': {rule}"):
            Document("a", **value)

    def test_one_id_is_not_a_list_of_ids(self, tmp_path: Path) -> None:
        with open_index(tmp_path / "i.lex", create=True, vocabulary=VOCABULARY) as index:
            index.add([Document("1"), Document("2")], encode([{0: 1.0}] * 2))
            index.commit()
            for take in (index.delete, index.fetch, index.vectors, index.fingerprints):
                with pytest.raises(TypeError, match="a list of ids, not the single id '12'"):
                    take("12")
                with pytest.raises(TypeError, match="an id is a string, not 12"):
                    take([12])  # type: ignore[list-item]
            assert index.delete(["12", "2"]) == 1


def png(image: Image.Image) -> bytes:
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()


PIXELS = np.random.default_rng(5).integers(0, 256, (5, 7, 3)).astype(np.uint8)
PICTURE = Image.fromarray(PIXELS)
FORMS: dict[str, Callable[[], object]] = {
    "BytesIO": lambda: io.BytesIO(png(PICTURE)),
    "data URL": lambda: "data:image/png;base64," + base64.b64encode(png(PICTURE)).decode(),
    "tensor": lambda: torch.tensor(PIXELS),
    "tensor, channels first": lambda: torch.tensor(PIXELS).permute(2, 0, 1),
    "tensor of floats": lambda: torch.tensor(PIXELS / 255).permute(2, 0, 1).requires_grad_(),
}


class TestImages:
    @pytest.mark.parametrize("form", FORMS)
    def test_forms(self, form: str) -> None:
        source = FORMS[form]()
        for _ in range(2):  # a BytesIO is not used up
            assert np.array_equal(np.asarray(open_image(source)), PIXELS)
        assert Query(image=source).describe() == "the query's image"

    @pytest.mark.parametrize(
        ("source", "said"),
        [
            ("data:image/png,abc", "'<data URL>': a data URL must hold base64"),
            ("data:image/png;base64,%%", "'<data URL>': is not valid base64"),
            (io.BytesIO(), "'<BytesIO>': the file is empty"),
            (torch.full((3, 4, 4), -1.0), "'<Tensor>': floats of an image tensor must be from 0"),
            (torch.full((3, 4, 4), torch.nan), "'<Tensor>': floats of an image tensor must be"),
            (torch.zeros((4, 4), dtype=torch.int64), "'<Tensor>': .* must be uint8, not int64"),
            (None, "'<NoneType>': an image cannot be read from a value of type NoneType"),
        ],
    )
    def test_refused(self, source: object, said: str) -> None:
        with pytest.raises(InputError, match=said):
            open_image(source)

    @pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float64])
    def test_floats_of_any_size(self, kind: torch.dtype) -> None:
        image = open_image(torch.tensor([[0, 0.5, 1]], dtype=kind))
        assert np.asarray(image)[0, :, 0].tolist() == [0, 128, 255]

    def test_an_opened_image_stays_upright(self) -> None:
        data, exif = io.BytesIO(), Image.Exif()
        exif[0x112] = 6  # to be turned by a quarter
        Image.new("RGB", (40, 20)).save(data, "JPEG", exif=exif)
        once = open_image(data)
        assert once.size == open_image(once).size == (20, 40)


class TestBatches:
    @pytest.mark.parametrize(
        "images",
        [
            *(PICTURE, PIXELS, torch.tensor(PIXELS), np.array("a.png")),
            *(Path("a.png"), b"", bytearray(), io.BytesIO(), "a.png"),
        ],
    )
    def test_one_image_is_not_a_list(self, images: object) -> None:
        with pytest.raises(TypeError, match="a list of images, not a single one"):
            list(batches(images, 4, False, "images"))

    def test_a_text_that_is_none_is_named(self) -> None:
        with pytest.raises(InputError, match=r"'texts\[2\]': must be a string, not float"):
            list(batches(["red", "blue", np.nan], 2, False, "texts"))

    def test_an_image_without_a_name_gets_its_place(self) -> None:
        images = [PICTURE, PIXELS, PIXELS.astype(float)]
        with pytest.raises(InputError, match=r"'images\[2\]': an image array must be uint8"):
            list(ahead(open_image, batches(images, 2, False, "images")))
        with pytest.raises(InputError, match=r"'none.png': no such file"):
            list(ahead(open_image, batches([PICTURE, "none.png"], 2, False, "images")))
