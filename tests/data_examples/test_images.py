"""Images that are refused, each with its reason, and those that pass unchanged."""

import base64
import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from examples.ophthareason.images import (
    ImageError,
    check_image,
    decode_base64,
    looks_like_base64,
    read_image,
    resolve_inside,
)
from tests.data_examples.samples import picture


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds a single byte of pixels: a decompression bomb in small."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF"])
def test_the_bytes_of_a_good_image_are_kept(kind: str) -> None:
    data = picture("green", size=(20, 12), kind=kind)
    checked = check_image(data)
    assert (checked.data, checked.format, checked.size) == (data, kind, (20, 12))


def test_the_hash_is_of_pixels_and_not_of_files() -> None:
    # One lossless picture in two formats; then one pixel more, and one transposed.
    png, bmp = (check_image(picture("blue", kind=kind)) for kind in ("PNG", "BMP"))
    assert png.data != bmp.data
    assert png.pixels == bmp.pixels
    assert check_image(picture("blue", size=(16, 17))).pixels != png.pixels
    wide, high = (check_image(picture("blue", size=size)) for size in ((8, 32), (32, 8)))
    assert wide.pixels != high.pixels


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not an image"),
        (b"GIF89a not really", "not an image"),
        (b"%PDF-1.7 and so on", "not an image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image"),
        (picture(kind="BMP")[:200], "not an image"),  # cut off
        (png_header(60_000, 60_000), "not an image|at most 64000000 pixels"),
        (png_header(9_000, 9_000), "at most 64000000 pixels, got 9000x9000"),
        (png_header(100, 100), "not an image"),  # honest size, no pixels
        (picture(size=(4, 4)), "at least 8 pixels"),
        (picture(size=(2000, 8)), "at most 150:1, got 2000x8"),
    ],
)
def test_refused(data: bytes, words: str) -> None:
    with pytest.raises(ImageError, match=words):
        check_image(data)


def test_a_bomb_is_refused_before_it_is_decoded() -> None:
    # 40,000 x 40,000 black pixels are 4.8 GB decoded, and their PNG decodes lazily from little.
    with pytest.raises(ImageError, match=r"pixels|limit"):
        check_image(png_header(40_000, 40_000))


def test_formats_beyond_the_list_are_refused() -> None:
    handle = io.BytesIO()
    Image.new("P", (16, 16)).save(handle, "GIF")
    with pytest.raises(ImageError, match="not an image") as caught:
        check_image(handle.getvalue())
    assert "0x" not in str(caught.value)  # equal faults have equal words


@pytest.mark.parametrize(
    ("dtype", "kind", "mode"),
    [("uint16", "PNG", "I;16"), ("uint16", "TIFF", "I;16"), ("float32", "TIFF", "F")],
)
def test_more_than_8_bits_a_channel_are_refused(dtype: str, kind: str, mode: str) -> None:
    # Converted, every value over 255 would be white: these two would be one picture.
    for value in (300, 40_000):
        handle = io.BytesIO()
        Image.fromarray(np.full((16, 16), value, dtype=dtype)).save(handle, kind)
        with pytest.raises(ImageError, match=f"must have 8 bits a channel, got mode {mode}"):
            check_image(handle.getvalue())


@pytest.mark.parametrize(
    ("mode", "kind"),
    [("1", "PNG"), ("L", "PNG"), ("LA", "PNG"), ("P", "PNG"), ("RGBA", "PNG"), ("CMYK", "JPEG")],
)
def test_8_bits_a_channel_in_other_colours_pass(mode: str, kind: str) -> None:
    handle = io.BytesIO()
    Image.new(mode, (16, 16)).save(handle, kind)
    assert check_image(handle.getvalue()).size == (16, 16)


def test_a_stack_of_frames_is_refused() -> None:
    handle = io.BytesIO()
    first = Image.new("RGB", (16, 16))
    first.save(handle, "TIFF", save_all=True, append_images=[Image.new("RGB", (16, 16), "red")])
    with pytest.raises(ImageError, match="one frame"):
        check_image(handle.getvalue())


@given(st.binary(max_size=200), st.integers(0, 60))
@settings(max_examples=100, deadline=None)
def test_damage_raises_image_error_and_nothing_else(noise: bytes, place: int) -> None:
    data = picture(kind="JPEG")
    for hostile in (noise, data[:place] + noise + data[place + len(noise) :]):
        try:
            check_image(hostile)
        except ImageError:
            continue


@pytest.mark.parametrize(
    "name",
    [
        "../secret.png",
        "a/../../secret.png",
        "..\\secret.png",
        "/etc/passwd",
        "~/secret.png",
        "C:/secret.png",
        "C:\\secret.png",
        "\\\\host\\share.png",
    ],
)
def test_a_path_must_stay_inside(tmp_path: Path, name: str) -> None:
    (tmp_path / "secret.png").write_bytes(picture())
    (tmp_path / "root" / "a").mkdir(parents=True)
    with pytest.raises(ImageError, match="must stay inside the data folder"):
        resolve_inside(tmp_path / "root", name)


def test_a_link_must_not_lead_out(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(picture())
    root = tmp_path / "root"
    root.mkdir()
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(ImageError, match="must stay inside"):
        read_image(root, "link.png")
    # The hub's cache links to a folder beside the snapshot; who says so may follow.
    assert read_image(root, "link.png", boundary=tmp_path).size == (16, 16)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("", "must be a name"),
        ("a\0b.png", "must be a name"),
        ("missing.png", "no such file: 'missing.png'"),
        ("folder", "not a regular file"),
        ("pipe", "not a regular file"),
        ("x" * 5000, "cannot be opened"),
        ("loop", "cannot be opened"),
        ("\ud800.png", "cannot be opened|no such file"),
    ],
)
def test_names_that_are_no_files(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for ever
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(ImageError, match=words):
        read_image(tmp_path, name)


@pytest.mark.parametrize("prefix", ["", "data:image/png;base64,", "DATA:image/x-png;base64,"])
def test_base64_with_and_without_a_prefix(prefix: str) -> None:
    text = prefix + base64.b64encode(picture()).decode()
    assert decode_base64(text).data == picture()
    assert looks_like_base64(text)


def test_base64_in_lines_is_accepted() -> None:
    assert decode_base64(base64.encodebytes(picture()).decode()).data == picture()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("not base64!", "not base64"),
        ("abcde", "not base64"),  # five characters are no whole number of bytes
        ("aGVsbG8=", "not an image"),  # hello
        ("", "not base64"),
        ("é" * 100, "not base64"),
    ],
)
def test_bad_base64(text: str, words: str) -> None:
    with pytest.raises(ImageError, match=words):
        decode_base64(text)


@pytest.mark.parametrize("name", ["a.jpg", "deep/folder/" + "x" * 100 + ".png", "A" * 64])
def test_a_path_is_not_taken_for_base64(name: str) -> None:
    assert not looks_like_base64(name)
