"""Encoded pictures to RGB, with limits that hold before anything is decoded.

Knows Pillow and picture files. Does not know models, nor where it runs: the
caller gives it a process that may die.
"""

from __future__ import annotations

import io
import warnings

from PIL import Image, UnidentifiedImageError

from encoder_service.media.depth import to_eight_bits
from shared.errors import BadMediaError, MediaTooLargeError, PerceptError, UnsupportedMediaError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
"""The only decoders that a payload can reach."""

_ACCEPTED = "PNG, JPEG, WebP, GIF, BMP and TIFF are accepted"

# First bytes of what people send and we do not take, so that the refusal can name it.
_FOREIGN_SIGNATURES: tuple[tuple[int, bytes, str], ...] = (
    (0, b"<svg", "SVG"),
    (0, b"<?xml", "XML or SVG"),
    (0, b"%PDF", "PDF"),
    (0, b"%!PS", "PostScript"),
    (0, b"8BPS", "Photoshop"),
    (0, b"\x00\x00\x01\x00", "ICO"),
    (0, b"\xff\x0a", "JPEG XL"),
    (4, b"ftypavif", "AVIF"),
    (4, b"ftypheic", "HEIC"),
    (4, b"ftypmif1", "HEIF"),
    (4, b"ftyp", "MP4 video"),
    (4, b"jP  \r\n", "JPEG 2000"),
    (4, b"JXL \r\n", "JPEG XL"),
)

_STRIP_LENGTH = 1 << 20
"""Pixels that are laid on white at once."""

_ORIENTATION_TAG = 0x0112
_TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode_picture(payload: bytes | memoryview, max_pixel_count: int) -> Image.Image:
    """Decodes the first frame of an encoded picture.

    Orientation is applied, transparency is laid on white, deeper samples are
    scaled to 8 bits.

    A file cut short is refused, with one exception: a JPEG to whose cut end somebody
    put an end marker again decodes with its lower part grey. libjpeg only warns of
    that, and Pillow drops its warnings.

    Args:
        payload: the file.
        max_pixel_count: largest width x height, checked before decoding.

    Returns:
        A picture of mode RGB.

    Raises:
        MediaTooLargeError: more pixels, or more memory, than allowed.
        UnsupportedMediaError: a format or pixel type that is not accepted.
        BadMediaError: not a picture, or a broken or truncated one.
    """
    with warnings.catch_warnings():
        # Pillow warns of oddities in files; there is nobody here to read it.
        warnings.simplefilter("ignore")
        try:
            picture = _open(payload)
            _check_size(picture, max_pixel_count)
            picture.load()
            # TIFF may learn its size only now.
            _check_size(picture, max_pixel_count)
            return _to_rgb(_upright(picture))
        except PerceptError:
            raise
        except MemoryError:
            raise MediaTooLargeError("the picture needs more memory than a decoder may use") from None
        except Exception as fault:
            # Decoders raise whatever they stumble over, with addresses and paths
            # in the text: none of that leaves this function.
            raise _broken(fault) from None


def _open(payload: bytes | memoryview) -> Image.Image:
    # Our own limit replaces Pillow's: it is checked on the header just the same.
    Image.MAX_IMAGE_PIXELS = None
    try:
        return Image.open(io.BytesIO(payload), formats=FORMATS)
    except UnidentifiedImageError:
        raise _unidentified(bytes(memoryview(payload)[:64])) from None


def _unidentified(head: bytes) -> BadMediaError:
    head = head.lstrip() if head[:1].isspace() else head
    for offset, signature, name in _FOREIGN_SIGNATURES:
        if head[offset:].lower().startswith(signature.lower()):
            return UnsupportedMediaError(f"{name} is not accepted; {_ACCEPTED}")
    return BadMediaError(f"the bytes are not a picture that can be read; {_ACCEPTED}")


def _broken(fault: Exception) -> BadMediaError:
    if "truncated" in str(fault).lower():
        return BadMediaError("the picture is truncated")
    return BadMediaError("the picture is broken and cannot be decoded")


def _check_size(picture: Image.Image, max_pixel_count: int) -> None:
    width, height = picture.size
    if width < 1 or height < 1:
        raise BadMediaError("the picture has no pixels")
    if width * height > max_pixel_count:
        raise MediaTooLargeError(
            f"the picture has {width} x {height} pixels; at most {max_pixel_count} in all are accepted"
        )


def _upright(picture: Image.Image) -> Image.Image:
    """Applies the orientation tag. Pillow has done so already for TIFF, and removed the tag."""
    try:
        orientation = picture.getexif().get(_ORIENTATION_TAG)
    except Exception:
        # A broken EXIF block says nothing about the pixels, which are whole.
        orientation = None
    transposition = _TRANSPOSITIONS.get(orientation) if isinstance(orientation, int) else None
    return picture if transposition is None else picture.transpose(transposition)


def _to_rgb(picture: Image.Image) -> Image.Image:
    picture = to_eight_bits(picture)
    if picture.has_transparency_data:
        return on_white(picture)
    try:
        return picture if picture.mode == "RGB" else picture.convert("RGB")
    except ValueError:
        raise UnsupportedMediaError(f"pictures of mode {picture.mode} are not accepted") from None


def on_white(picture: Image.Image) -> Image.Image:
    """Lays a transparent picture on white, by strips: the steps between take memory."""
    width, height = picture.size
    result = Image.new("RGB", picture.size)
    strip_height = max(1, _STRIP_LENGTH // width)
    for top in range(0, height, strip_height):
        rgba = picture.crop((0, top, width, min(height, top + strip_height))).convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        result.paste(Image.alpha_composite(white, rgba).convert("RGB"), (0, top))
    return result
