"""Decoding: what is accepted becomes the right pixels, and the rest a clear refusal."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from encoder_service.media.depth import to_eight_bits
from encoder_service.media.picture import decode_picture
from shared.errors import BadMediaError, MediaTooLargeError, UnsupportedMediaError

LIMIT = 1_000_000


def encoded(picture: Image.Image, file_format: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, file_format, **options)
    return file.getvalue()


def noise(width: int = 50, height: int = 40) -> Image.Image:
    samples = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(samples)


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_declaring(width: int, height: int) -> bytes:
    """A PNG whose header promises more than its one row."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(b"\0" * (1 + 3 * min(width, 1000)))
    return (
        b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", rows) + png_chunk(b"IEND", b"")
    )


LOSSLESS = {
    "PNG": encoded(noise(), "PNG"),
    "WEBP": encoded(noise(), "WEBP", lossless=True),
    "BMP": encoded(noise(), "BMP"),
    "TIFF": encoded(noise(), "TIFF"),
    "TIFF LZW": encoded(noise(), "TIFF", compression="tiff_lzw"),
}
LOSSY = {
    "JPEG": encoded(noise(), "JPEG"),
    "progressive JPEG": encoded(noise(), "JPEG", progressive=True),
    "WEBP": encoded(noise(), "WEBP"),
    "GIF": encoded(noise().quantize(), "GIF"),
}


@pytest.mark.parametrize("name", LOSSLESS)
def test_lossless_formats_give_their_pixels(name: str) -> None:
    assert decode_picture(LOSSLESS[name], LIMIT).tobytes() == noise().tobytes()


@pytest.mark.parametrize("name", LOSSY)
def test_lossy_formats_give_rgb_of_their_size(name: str) -> None:
    picture = decode_picture(LOSSY[name], LIMIT)
    assert (picture.mode, picture.size) == ("RGB", (50, 40))


@pytest.mark.parametrize("name", [*LOSSLESS, *LOSSY])
def test_a_truncated_file_is_refused_or_whole_but_never_part_grey(name: str) -> None:
    data = LOSSLESS.get(name) or LOSSY[name]
    whole = decode_picture(data, LIMIT).tobytes()
    refused = 0
    for length in range(0, len(data), max(1, len(data) // 60)):
        try:
            assert decode_picture(data[:length], LIMIT).tobytes() == whole
        except BadMediaError:
            refused += 1
    assert refused >= 55


def test_scaling_deep_samples_takes_little_memory_beside_the_picture() -> None:
    deep = Image.fromarray(np.full((2000, 4000), 40_000, np.uint16))
    tracemalloc.start()
    try:
        grey = to_eight_bits(deep)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert grey.getpixel((3999, 1999)) == 156
    assert peak < 8 * 8_000_000


def test_the_pixel_limit_holds_before_decoding() -> None:
    with pytest.raises(MediaTooLargeError, match="20000 x 20000"):
        decode_picture(png_declaring(20_000, 20_000), LIMIT)
    assert decode_picture(encoded(noise(1000, 1000)), LIMIT).size == (1000, 1000)
    with pytest.raises(MediaTooLargeError):
        decode_picture(encoded(noise(1001, 1000)), LIMIT)


def test_a_limit_above_pillows_own_counts() -> None:
    # Pillow alone refuses this with DecompressionBombError; the file then turns out truncated.
    with pytest.raises(BadMediaError, match=r"truncated|broken") as caught:
        decode_picture(png_declaring(20_000, 20_000), 500_000_000)
    assert not isinstance(caught.value, MediaTooLargeError)


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1)])
def test_extreme_shapes_decode(size: tuple[int, int]) -> None:
    assert decode_picture(encoded(Image.new("RGB", size)), LIMIT).size == size


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_once(file_format: str, orientation: int) -> None:
    # Black but for a white upper left quarter, which shows where each corner went.
    upright = Image.new("RGB", (64, 32))
    upright.paste((255, 255, 255), (0, 0, 32, 16))
    back = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
    stored = upright.transpose(Image.Transpose(back[orientation])) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = decode_picture(encoded(stored, file_format, exif=exif.tobytes()), LIMIT)
    assert picture.size == (64, 32)
    corners = [picture.getpixel(at)[0] > 128 for at in ((8, 4), (56, 4), (8, 28), (56, 28))]  # type: ignore[index]
    assert corners == [True, False, False, False]


def test_a_broken_exif_block_does_not_hide_whole_pixels() -> None:
    data = encoded(noise(), "PNG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert decode_picture(data, LIMIT).tobytes() == noise().tobytes()


def _grey_with_alpha() -> Image.Image:
    return Image.merge("LA", (Image.new("L", (2, 2), 100), Image.new("L", (2, 2), 0)))


def _palette_with_transparency() -> bytes:
    picture = Image.new("P", (2, 2), 0)
    picture.putpalette([200, 0, 0, 0, 0, 200])
    return encoded(picture, "PNG", transparency=0)


@pytest.mark.parametrize(
    "data",
    [
        encoded(Image.new("RGBA", (2, 2), (10, 20, 30, 0))),
        encoded(_grey_with_alpha()),
        _palette_with_transparency(),
        encoded(Image.new("RGB", (2, 2), (9, 9, 9)), transparency=(9, 9, 9)),
        encoded(Image.new("L", (2, 2), 9), transparency=9),
        encoded(Image.new("RGBA", (2, 2), (10, 20, 30, 0)), "WEBP", lossless=True),
        encoded(Image.new("RGBA", (2, 2), (10, 20, 30, 0)), "TIFF"),
    ],
    ids=["RGBA", "LA", "P", "RGB key", "L key", "WebP", "TIFF"],
)
def test_transparency_is_laid_on_white(data: bytes) -> None:
    assert decode_picture(data, LIMIT).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_a_large_transparent_picture_is_laid_on_white_without_seams(mode: str) -> None:
    # 2.5 strips.
    pixels = np.random.default_rng(0).integers(0, 255, (2000, 1300, 4), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    stored = picture.quantize(64) if mode == "P" else picture.convert(mode)
    white = Image.new("RGBA", picture.size, "white")
    expected = Image.alpha_composite(white, stored.convert("RGBA")).convert("RGB")
    assert decode_picture(encoded(stored), 3_000_000).tobytes() == expected.tobytes()


def test_half_transparent_is_half_white() -> None:
    data = encoded(Image.new("RGBA", (1, 1), (0, 0, 0, 128)))
    assert decode_picture(data, LIMIT).getpixel((0, 0)) == (127, 127, 127)


@pytest.mark.parametrize("file_format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_an_animation_gives_its_first_frame(file_format: str) -> None:
    red, blue = Image.new("RGB", (8, 8), (255, 0, 0)), Image.new("RGB", (8, 8), (0, 0, 255))
    options = {"lossless": True} if file_format == "WEBP" else {}
    data = encoded(red, file_format, save_all=True, append_images=[blue], **options)
    assert decode_picture(data, LIMIT).getpixel((4, 4)) == (255, 0, 0)


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_not_clipped(file_format: str) -> None:
    samples = np.array([[0, 40_000, 65_535]], np.uint16)
    picture = decode_picture(encoded(Image.fromarray(samples), file_format), LIMIT)
    assert [picture.getpixel((x, 0)) for x in range(3)] == [(0,) * 3, (156,) * 3, (255,) * 3]


def test_sixteen_bit_colour_is_scaled() -> None:
    header = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)
    row = zlib.compress(b"\0" + struct.pack(">HHH", 40_000, 0, 65_535))
    data = (
        b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", row) + png_chunk(b"IEND", b"")
    )
    assert decode_picture(data, LIMIT).getpixel((0, 0)) == (156, 0, 255)


def test_sixteen_bit_grey_keeps_its_transparent_value() -> None:
    samples = np.array([[0, 40_000]], np.uint16)
    header = struct.pack(">IIBBBBB", 2, 1, 16, 0, 0, 0, 0)
    row = zlib.compress(b"\0" + samples.astype(">u2").tobytes())
    chunks = png_chunk(b"IHDR", header) + png_chunk(b"tRNS", struct.pack(">H", 0)) + png_chunk(b"IDAT", row)
    picture = decode_picture(b"\x89PNG\r\n\x1a\n" + chunks + png_chunk(b"IEND", b""), LIMIT)
    assert [picture.getpixel((x, 0)) for x in range(2)] == [(255,) * 3, (156,) * 3]


def test_signed_thirty_two_bit_integers_are_scaled() -> None:
    samples = np.array([[-5, 1 << 30, (1 << 31) - 1]], np.int32)
    picture = decode_picture(encoded(Image.fromarray(samples), "TIFF"), LIMIT)
    assert [picture.getpixel((x, 0)) for x in range(3)] == [(0,) * 3, (128,) * 3, (255,) * 3]


def test_unsigned_thirty_two_bit_integers_are_scaled() -> None:
    samples = np.array([[0, 1 << 31, (1 << 32) - 1]], np.uint32)
    signed_file = encoded(Image.fromarray(samples.view(np.int32)), "TIFF")
    sample_format = struct.pack("<HHIH", 339, 3, 1, 2)
    assert sample_format in signed_file
    unsigned_file = signed_file.replace(sample_format, struct.pack("<HHIH", 339, 3, 1, 1))
    picture = decode_picture(unsigned_file, LIMIT)
    assert [picture.getpixel((x, 0)) for x in range(3)] == [(0,) * 3, (128,) * 3, (255,) * 3]


def test_floating_point_samples_are_refused() -> None:
    with pytest.raises(UnsupportedMediaError, match="floating-point"):
        decode_picture(encoded(Image.new("F", (2, 2), 0.5), "TIFF"), LIMIT)


def test_cmyk_becomes_rgb() -> None:
    data = encoded(Image.new("CMYK", (4, 4), (0, 255, 255, 0)), "TIFF")
    assert decode_picture(data, LIMIT).getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"%PDF-1.7\n", "PDF"),
        (b"\0\0\0\x20ftypavif\0\0\0\0", "AVIF"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "HEIC"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "PostScript"),
        (b"\0\0\0\x20ftypisom\0\0\0\0", "MP4"),
    ],
)
def test_foreign_formats_are_named(data: bytes, name: str) -> None:
    with pytest.raises(UnsupportedMediaError, match=name):
        decode_picture(data, LIMIT)


@pytest.mark.parametrize("file_format", ["PPM", "TGA", "ICO", "PCX", "DDS", "JPEG2000"])
def test_formats_outside_the_allowlist_never_reach_a_decoder(file_format: str) -> None:
    with pytest.raises(BadMediaError, match="are accepted"):
        decode_picture(encoded(noise(32, 32), file_format), LIMIT)


@pytest.mark.parametrize(
    "data", [b"", b"\0", b"<html></html>", b"GIF89a", b"\xff\xd8\xff", b"BM" + b"\xff" * 60]
)
def test_garbage_is_refused_without_details_of_ours(data: bytes) -> None:
    with pytest.raises(BadMediaError) as caught:
        decode_picture(data, LIMIT)
    assert "0x" not in str(caught.value) and "/" not in str(caught.value)
