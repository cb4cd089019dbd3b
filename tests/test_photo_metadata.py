"""What photographs' files say, as metadata and texts of documents."""

from __future__ import annotations

import struct
import warnings
from pathlib import Path

import pytest
from PIL import ExifTags, Image, PngImagePlugin, TiffImagePlugin, TiffTags

from image_bytes import encoded
from indexer_fakes import ColourEncoder
from ingest_fakes import manifest, new_index
from lexvla.images import open_image
from lexvla.photo_metadata import read_photo_metadata
from lexvla_indexer import index_source
from lexvla_indexer.reading import Reading
from lexvla_search import cli

pytestmark = pytest.mark.filterwarnings("ignore:Corrupt EXIF data")

XMP = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description xmlns:dc="http://purl.org/dc/elements/1.1/">
<dc:title><rdf:Alt><rdf:li xml:lang="x-default">Holiday</rdf:li></rdf:Alt></dc:title>
<dc:description><rdf:Alt><rdf:li xml:lang="x-default">A dog
 on the beach</rdf:li><rdf:li xml:lang="de">Ein Hund</rdf:li></rdf:Alt></dc:description>
<dc:subject><rdf:Bag><rdf:li>dog</rdf:li><rdf:li>Größe</rdf:li><rdf:li>dog</rdf:li></rdf:Bag></dc:subject>
</rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end="w"?>"""
BOMB = '<!DOCTYPE a [<!ENTITY b "dog"><!ENTITY c "&b;&b;">]>' + XMP.split("?>", 1)[1].replace(
    "Holiday", "&c;"
)


def exif(**changes: object) -> Image.Exif:
    values = {
        "taken": "2024:06:01 12:30:00",
        "camera": "Pixel 8",
        "lens": "Pixel 8 back camera 6.9mm f/1.68",
        "orientation": 6,
        "latitude": ((52.0, 30.0, 36.0), "N"),
        "longitude": ((13.0, 15.0, 0.0), "W"),
        **changes,
    }
    made = Image.Exif()
    if values["camera"] is not None:
        made[ExifTags.Base.Model] = values["camera"]
    made[ExifTags.Base.Orientation] = values["orientation"]
    made._ifds[ExifTags.IFD.Exif] = {
        ExifTags.Base.DateTimeOriginal: values["taken"],
        ExifTags.Base.LensModel: values["lens"],
    }
    made._ifds[ExifTags.IFD.GPSInfo] = {
        ExifTags.GPS.GPSLatitude: values["latitude"][0],
        ExifTags.GPS.GPSLatitudeRef: values["latitude"][1],
        ExifTags.GPS.GPSLongitude: values["longitude"][0],
        ExifTags.GPS.GPSLongitudeRef: values["longitude"][1],
    }
    return made


def iptc(*records: tuple[int, int, bytes]) -> bytes:
    """Write the APP13 segment of a JPEG."""
    block = b"".join(
        struct.pack(">BBBH", 0x1C, record, number, len(value)) + value
        for record, number, value in records
    )
    resource = b"8BIM" + struct.pack(">HHI", 0x0404, 0, len(block)) + block + bytes(len(block) % 2)
    data = b"Photoshop 3.0\0" + resource
    return b"\xff\xed" + struct.pack(">H", len(data) + 2) + data


def jpeg(segment: bytes = b"", **options: object) -> bytes:
    data = encoded(Image.new("RGB", (8, 8), "red"), "JPEG", **options)
    return data[:2] + segment + data[2:]


EXPECTED = {
    "taken": "2024-06-01T12:30:00",
    "camera": "Pixel 8",
    "lens": "Pixel 8 back camera 6.9mm f/1.68",
    "orientation": 6,
    "latitude": 52.51,
    "longitude": -13.25,
}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_exif_becomes_typed_fields(kind: str) -> None:
    said = read_photo_metadata(encoded(Image.new("RGB", (8, 8)), kind, exif=exif().tobytes()))
    assert said.fields == EXPECTED
    assert said.text == ""


@pytest.mark.parametrize(
    ("changes", "missing"),
    [
        ({"taken": "0000:00:00 00:00:00"}, {"taken"}),
        ({"taken": "2024:13:01 12:30:00"}, {"taken"}),
        ({"taken": "yesterday"}, {"taken"}),
        ({"camera": " \0junk"}, {"camera"}),
        ({"orientation": 9}, {"orientation"}),
        ({"latitude": ((91.0, 0.0, 0.0), "N")}, {"latitude", "longitude"}),
        ({"latitude": ((1.0, 0.0, 0.0), "X")}, {"latitude", "longitude"}),
    ],
)
def test_what_cannot_be_is_left_out(changes: dict, missing: set[str]) -> None:
    said = read_photo_metadata(jpeg(exif=exif(**changes)))
    assert said.fields.keys() == EXPECTED.keys() - missing


@pytest.mark.parametrize(
    ("latitude", "longitude", "expected"),
    [
        ((0.0, "N"), (13.0, "E"), {"latitude": 0.0, "longitude": 13.0}),
        ((51.0, "N"), (0.0, "E"), {"latitude": 51.0, "longitude": 0.0}),
        ((0.0, "N"), (0.0, "E"), {}),  # no place was found
    ],
)
def test_places_on_the_equator_and_on_the_meridian(
    latitude: tuple[float, str], longitude: tuple[float, str], expected: dict[str, float]
) -> None:
    placed = {
        name: ((degrees, 0.0, 0.0), side)
        for name, (degrees, side) in (("latitude", latitude), ("longitude", longitude))
    }
    fields = read_photo_metadata(jpeg(exif=exif(**placed))).fields
    assert {name: fields[name] for name in placed if name in fields} == expected


def test_names_are_plain_text() -> None:
    said = read_photo_metadata(jpeg(exif=exif(camera="Caméra\n X\0rest".encode())))
    assert said.fields["camera"] == "Caméra X"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_xmp_gives_text_and_tags(kind: str) -> None:
    image, data = Image.new("RGB", (8, 8)), XMP.encode()
    options: dict = {"xmp": data}
    if kind == "PNG":
        options = {"pnginfo": PngImagePlugin.PngInfo()}
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", XMP)
    if kind == "TIFF":
        options = {"tiffinfo": {700: data}}
    said = read_photo_metadata(encoded(image, kind, **options))
    assert said.text == "Holiday\nA dog on the beach\ndog, Größe"
    assert said.fields["tags"] == ["dog", "Größe"]


def test_iptc_gives_text_and_tags_beside_xmp() -> None:
    segment = iptc(
        (1, 90, b"\x1b%G"),
        (2, 5, "Träume".encode()),
        (2, 120, b"A caption"),
        (2, 25, b"sea"),
        (2, 25, b"dog"),
    )
    said = read_photo_metadata(jpeg(segment))
    assert (said.text, said.fields) == ("Träume\nA caption\nsea, dog", {"tags": ["sea", "dog"]})
    both = read_photo_metadata(jpeg(segment, xmp=XMP.encode()))
    assert both.text == "Holiday\nA dog on the beach\ndog, Größe, sea"


def test_old_iptc_is_latin_1() -> None:
    assert read_photo_metadata(jpeg(iptc((2, 120, b"caf\xe9")))).text == "café"


@pytest.mark.parametrize("xmp", [b"<a", b"\xff\xfe", BOMB.encode(), b"\0" * 9, b"<a/>"])
def test_damaged_or_hostile_xmp_says_nothing(xmp: bytes) -> None:
    assert read_photo_metadata(jpeg(xmp=xmp)).text == ""


@pytest.mark.parametrize(("kind", "values"), [("H", [1, 2]), ("I", [5])])
def test_xmp_of_a_tiff_that_is_no_text_is_left_out(kind: str, values: list[int]) -> None:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags.tagtype[700] = {"H": TiffTags.SHORT, "I": TiffTags.LONG}[kind]
    tags[700] = tuple(values)
    tags[ExifTags.Base.Orientation] = 6
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Metadata Warning")
        data = encoded(Image.new("RGB", (8, 4)), "TIFF", tiffinfo=tags)
        said, image = read_photo_metadata(data), open_image(data)
    assert (said.fields, said.text) == ({"orientation": 6}, "")
    assert image.size == (4, 8)


@pytest.mark.parametrize("data", [b"", b"no image", jpeg()[:30]])
def test_what_is_no_image_says_nothing(data: bytes) -> None:
    said = read_photo_metadata(data)
    assert (said.fields, said.text) == ({}, "")


def test_damaged_exif_says_nothing() -> None:
    for data in (b"Exif\0\0MM\0*\xff\xff\xff\xff", b"Exif\0\0", b"Exif\0\0II*\0" + bytes(60)):
        assert read_photo_metadata(jpeg(exif=data)).fields == {}


# In an index


def test_a_photograph_is_found_by_when_and_with_what_it_was_taken(tmp_path: Path) -> None:
    folder, encoder = tmp_path / "p", ColourEncoder()
    folder.mkdir()
    (folder / "june.jpg").write_bytes(jpeg(exif=exif(), xmp=XMP.encode()))
    (folder / "may.jpg").write_bytes(jpeg(exif=exif(taken="2024:05:31 23:59:59")))
    (folder / "other.jpg").write_bytes(jpeg(exif=exif(camera="EOS R5")))
    (folder / "bare.jpg").write_bytes(jpeg())
    with new_index(tmp_path / "i.lex") as index:
        assert index_source(folder, index, encoder).added == 4
        red = encoder.encode_text(["red"])

        def found(condition: str) -> list[str]:
            return sorted(index.search(red, k=9, filter=condition)[0].ids)

        assert found('taken >= 2024-06-01 and camera = "Pixel 8"') == ["june.jpg"]
        assert found("taken < 2024-06-01") == ["may.jpg"]
        assert found("latitude > 52.5 and longitude < 0 and tags = dog") == ["june.jpg"]
        assert found("not orientation = 6") == ["bare.jpg"]
        (june,) = index.fetch(["june.jpg"]).documents
        assert june.text == "Holiday\nA dog on the beach\ndog, Größe"
        again = index_source(folder, index, encoder)
        assert (again.added, again.skipped) == (0, 4)
        bare = index_source(folder, index, encoder, reading=Reading(exif=False))
        assert (bare.added, bare.updated) == (0, 4)  # the vectors stay
        (june,) = index.fetch(["june.jpg"]).documents
        assert (june.text, june.metadata) == ("", {})


def test_what_a_manifest_says_counts_more_than_the_file(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "a.jpg").write_bytes(jpeg(exif=exif(), xmp=XMP.encode()))
    line = {"id": "a", "image": "a.jpg", "text": "mine", "metadata": {"camera": "none", "n": 1}}
    with new_index(tmp_path / "i.lex") as index:
        index_source(manifest(tmp_path / "m", line), index, ColourEncoder())
        (document,) = index.fetch(["a"]).documents
    assert document.text == "mine\nHoliday\nA dog on the beach\ndog, Größe"
    assert document.metadata == {**EXPECTED, "tags": ["dog", "Größe"], "camera": "none", "n": 1}


def test_the_command_does_not_show_what_pillow_says_of_damaged_exif(tmp_path: Path) -> None:
    folder = tmp_path / "p"
    folder.mkdir()
    damaged = b"Exif\0\0II*\0" + bytes(60)
    (folder / "a.jpg").write_bytes(jpeg(exif=damaged))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        read_photo_metadata(jpeg(exif=damaged))
        assert "Corrupt EXIF data" in str(said[0].message)
        said.clear()
        assert cli.main(["index", str(folder), "--index", str(tmp_path / "i.lex")]) == 0
    assert [each for each in said if "EXIF" in str(each.message)] == []
