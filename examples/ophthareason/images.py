"""Images from files that nobody vouches for: bounded, verified, hashed.

An image is carried as the bytes of its file. Before that it is proven to be one: format on a short
list, pixel count bounded before anything is decoded, then decoded whole. A path must stay inside
its folder.
"""

import base64
import binascii
import hashlib
import io
import re
import stat
import warnings
from pathlib import Path
from typing import NamedTuple

from PIL import Image

__all__ = [
    "FORMATS",
    "MAX_BYTES",
    "MAX_PIXELS",
    "CheckedImage",
    "ImageError",
    "check_image",
    "decode_base64",
    "looks_like_base64",
    "open_rgb",
    "read_image",
    "resolve_inside",
]

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM")
"""What public retinal data sets ship. Everything else is refused, whatever its suffix says."""
MAX_PIXELS = 64_000_000
"""Wide-field cameras reach about 16 megapixels; four times that is no photograph of an eye."""
MAX_BYTES = 64 * 1024 * 1024
"""No single image file may be larger."""
MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"})
"""Pillow's names of what becomes RGB without loss of depth: at most 8 bits a channel."""
MIN_SIDE = 8
"""Anything smaller is a placeholder; vision encoders cut patches of 14."""
MAX_ASPECT = 150
"""Qwen's image processor refuses 200:1; no scan comes near it."""

_BASE64 = re.compile(r"[A-Za-z0-9+/\s]+={0,2}\s*")
_OBJECT = re.compile(r"\s?<_io\.BytesIO object at 0x[0-9A-Fa-f]+>")
_DATA_URI = re.compile(r"data:image/[a-z0-9.+-]{1,20};base64,", re.IGNORECASE)


class ImageError(ValueError):
    """An image that is refused; the message says why."""


class CheckedImage(NamedTuple):
    """An image that was decoded whole once."""

    data: bytes
    """The file as it came."""
    format: str
    """One of `FORMATS`."""
    size: tuple[int, int]
    """Width and height."""
    pixels: str
    """SHA-256 of the RGB pixels and the size: equal for one picture in two files or formats."""


def resolve_inside(root: Path, name: str, *, boundary: Path | None = None) -> Path:
    """Return the file that a record means, or refuse.

    Args:
        root: The folder that names are relative to.
        name: A relative path with forward slashes.
        boundary: Where symbolic links may lead; ``root`` if not given. The cache of the Hugging
            Face hub keeps the files of a snapshot as links into a folder beside it.

    Returns:
        The path of a regular file inside the boundary.

    Raises:
        ImageError: If the name is absolute, climbs, leaves the boundary through a link, or names no
            regular file.
    """
    if not name or "\0" in name:
        raise ImageError(f"path must be a name, got {name[:80]!r}")
    parts = re.split(r"[\\/]", name)
    if ".." in parts or name.startswith(("/", "\\", "~")) or re.match(r"^[A-Za-z]:", name):
        raise ImageError(f"path must stay inside the data folder, got {name[:200]!r}")
    try:
        path = (root / name).resolve(strict=True)
        regular = stat.S_ISREG(path.stat().st_mode)
    except FileNotFoundError:
        raise ImageError(f"no such file: {name[:200]!r}") from None
    except (
        OSError,
        ValueError,
        RuntimeError,
    ) as error:  # too long, a loop of links, lone surrogates
        raise ImageError(f"path {name[:200]!r} cannot be opened: {error}") from None
    if not path.is_relative_to((boundary or root).resolve()):
        raise ImageError(f"path must stay inside the data folder, got {name[:200]!r}")
    if not regular:
        raise ImageError(f"not a regular file: {name[:200]!r}")
    return path


def read_image(root: Path, name: str, *, boundary: Path | None = None) -> CheckedImage:
    """Read and check the image that a record names.

    Args:
        root: The folder that names are relative to.
        name: A relative path with forward slashes.
        boundary: Where symbolic links may lead, see `resolve_inside`.

    Returns:
        The image, decoded once.

    Raises:
        ImageError: If the path or the image is refused.
    """
    path = resolve_inside(root, name, boundary=boundary)
    try:
        with path.open("rb") as handle:
            data = handle.read(MAX_BYTES + 1)
    except OSError as error:
        raise ImageError(f"{name!r} cannot be read: {error.strerror}") from None
    return check_image(data)


def looks_like_base64(text: str) -> bool:
    """Tell an encoded image from a path: the name of an image file has a dot, base64 has none."""
    return bool(_DATA_URI.match(text[:64])) or (len(text) > 64 and "." not in text[:4096])


def decode_base64(text: str) -> CheckedImage:
    """Decode and check an image that is written as base64, with or without a ``data:`` prefix.

    Args:
        text: The encoded file; white space between characters is allowed.

    Returns:
        The image, decoded once.

    Raises:
        ImageError: If the text is not base64, or what it holds is refused.
    """
    if len(text) > MAX_BYTES * 3 // 2:
        raise ImageError(
            f"base64 text must be under {MAX_BYTES * 3 // 2} characters, got {len(text)}"
        )
    prefix = _DATA_URI.match(text)
    body = text[prefix.end() :] if prefix else text
    if not _BASE64.fullmatch(body):
        raise ImageError(f"not base64: {text[:40]!r}")
    try:
        data = base64.b64decode("".join(body.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ImageError(f"not base64: {error}") from None
    return check_image(data)


def check_image(data: bytes) -> CheckedImage:
    """Prove that bytes are an image worth showing to a model.

    Args:
        data: The content of an image file.

    Returns:
        The same bytes with what was learned about them.

    Raises:
        ImageError: If they are too many, no image, of another format, too many or too few pixels,
            more than 8 bits a channel, or cut off.
    """
    if len(data) > MAX_BYTES:
        raise ImageError(f"image file must be at most {MAX_BYTES} bytes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # our own bound is lower than Pillow's warning
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                kind, (width, height) = image.format or "", image.size
                if width * height > MAX_PIXELS:
                    raise ImageError(
                        f"image must have at most {MAX_PIXELS} pixels, got {width}x{height}"
                    )
                short, long = sorted((width, height))
                if short < MIN_SIDE or long > short * MAX_ASPECT:
                    raise ImageError(
                        f"image must be at least {MIN_SIDE} pixels wide and high and at most "
                        f"{MAX_ASPECT}:1, got {width}x{height}"
                    )
                if getattr(image, "n_frames", 1) != 1:
                    raise ImageError("image must have one frame, got an animation or a stack")
                if image.mode not in MODES:  # convert would cut every value off at 255
                    raise ImageError(f"image must have 8 bits a channel, got mode {image.mode}")
                rgb = image.convert("RGB")
    except ImageError:
        raise
    except Exception as error:  # Pillow's decoders raise whatever they like on hostile bytes
        reason = _OBJECT.sub("", str(error))[:120]
        raise ImageError(f"not an image ({', '.join(FORMATS)}): {reason}") from None
    digest = hashlib.sha256(f"{width}x{height}:".encode())
    digest.update(rgb.tobytes())
    return CheckedImage(data, kind, (width, height), digest.hexdigest())


def open_rgb(data: bytes) -> Image.Image:
    """Decode bytes that `check_image` has passed.

    Args:
        data: The content of an image file.

    Returns:
        The picture in RGB.
    """
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        return image.convert("RGB")
