"""Decoding against plain NumPy, on real radiographs and on files made or damaged here."""

import random
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from aecnn.data.images import MAX_FILE_BYTES, MAX_SIDE_PX, decode_radiograph, verify_radiograph
from aecnn.errors import ImageError

Grey = npt.NDArray[np.uint8]


@pytest.fixture
def grey() -> Grey:
    return np.random.default_rng(5).integers(0, 256, size=(64, 64), dtype=np.uint8)


def save(picture: Image.Image, path: Path) -> Path:
    picture.save(path)
    return path


def mode_of(path: Path) -> str:
    with Image.open(path) as picture:
        return picture.mode


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_bytes(*, width: int, height: int, bit_depth: int, rows: bytes) -> bytes:
    """A grey PNG written by hand, so that its header can lie."""
    header = struct.pack(">IIBBBBB", width, height, bit_depth, 0, 0, 0, 0)
    parts = png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "P"])
def test_equal_channels_are_read_exactly_in_every_mode(tmp_path: Path, grey: Grey, mode: str) -> None:
    picture = Image.fromarray(grey)
    if mode == "P":
        picture.putpalette([value for level in range(256) for value in (level, level, level)])
        assert picture.mode == "P"
    picture = picture.convert(mode)
    if mode in ("LA", "RGBA"):
        picture.putalpha(Image.fromarray(255 - grey))  # alpha carries nothing
    assert mode_of(save(picture, tmp_path / "a.png")) == mode
    assert np.array_equal(decode_radiograph(tmp_path / "a.png", size_px=64), grey)


def test_one_bit_becomes_black_and_white(tmp_path: Path, grey: Grey) -> None:
    save(Image.fromarray(grey > 127), tmp_path / "a.png")
    assert mode_of(tmp_path / "a.png") == "1"
    assert np.array_equal(decode_radiograph(tmp_path / "a.png", size_px=64), np.where(grey > 127, 255, 0))


def test_sixteen_bits_keep_the_upper_eight(tmp_path: Path) -> None:
    values = np.random.default_rng(6).integers(0, 65_536, size=(32, 32)).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    (tmp_path / "a.png").write_bytes(png_bytes(width=32, height=32, bit_depth=16, rows=rows))
    assert np.array_equal(decode_radiograph(tmp_path / "a.png", size_px=32), values // 256)


def test_a_jpeg_is_read(tmp_path: Path) -> None:
    smooth = np.add.outer(np.arange(64), np.arange(64)).astype(np.uint8)
    Image.fromarray(smooth).save(tmp_path / "a.jpg", quality=98)
    assert np.abs(decode_radiograph(tmp_path / "a.jpg", size_px=64).astype(int) - smooth).max() <= 3


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_shrinking_takes_the_mean_over_the_area(tmp_path: Path, grey: Grey, factor: int) -> None:
    side = 64 // factor
    means = grey.reshape(side, factor, side, factor).mean(axis=(1, 3))
    found = decode_radiograph(save(Image.fromarray(grey), tmp_path / "a.png"), size_px=side)
    assert np.abs(found - means).max() <= 1.0  # each of two passes rounds


def test_enlarging_keeps_flat_areas_and_the_range(tmp_path: Path) -> None:
    halves = np.repeat(np.array([[40, 200]], dtype=np.uint8), 16, axis=1).repeat(32, axis=0)
    found = decode_radiograph(save(Image.fromarray(halves), tmp_path / "a.png"), size_px=128)
    assert set(np.unique(found[:, :56])) == {40}
    assert set(np.unique(found[:, 72:])) == {200}
    assert (np.diff(found.astype(int), axis=1) >= 0).all()


@pytest.mark.parametrize(("width", "height"), [(64, 32), (32, 64), (64, 33)])
def test_a_picture_that_is_not_square_gets_black_borders(tmp_path: Path, grey: Grey, width: int, height: int) -> None:
    content = np.maximum(grey[:height, :width], 1)
    found = decode_radiograph(save(Image.fromarray(content), tmp_path / "a.png"), size_px=64)
    top, left = (64 - height) // 2, (64 - width) // 2
    assert np.array_equal(found[top : top + height, left : left + width], content)
    assert (found == 0).sum() == 64 * 64 - width * height


def test_real_radiographs_are_what_pillow_reads(real_data: Path) -> None:
    files = sorted((real_data / "nih_1024px" / "images").iterdir())
    chosen = [*files[:3], *(path for path in files if mode_of(path) == "RGBA")][:6]
    assert {mode_of(path) for path in chosen} == {"L", "RGBA"}
    for path in chosen:
        with Image.open(path) as picture:
            first_channel = np.asarray(picture.getchannel(0))
        assert np.array_equal(decode_radiograph(path, size_px=1024), first_channel)
        means = first_channel.reshape(256, 4, 256, 4).mean(axis=(1, 3))
        assert np.abs(decode_radiograph(path, size_px=256) - means).max() <= 1.0


@pytest.mark.parametrize(("width", "height"), [(MAX_SIDE_PX + 1, 1), (100_000, 100_000), (2**31 - 1, 2**31 - 1)])
def test_huge_dimensions_are_refused_before_any_memory_is_taken(tmp_path: Path, width: int, height: int) -> None:
    (tmp_path / "bomb.png").write_bytes(png_bytes(width=width, height=height, bit_depth=8, rows=b"\0" * 1000))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for refuse in (lambda p: decode_radiograph(p, size_px=64), verify_radiograph):
            with pytest.raises(ImageError, match=rf"bomb.png: has {width} × {height} pixels, accepted are up to 8192"):
                refuse(tmp_path / "bomb.png")


def test_the_largest_accepted_side_is_read(tmp_path: Path) -> None:
    Image.new("L", (MAX_SIDE_PX, 4), color=9).save(tmp_path / "a.png")
    assert decode_radiograph(tmp_path / "a.png", size_px=16).shape == (16, 16)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"no picture at all", "neither PNG nor JPEG"),
        (b"GIF89a" + b"\0" * 50, "neither PNG nor JPEG"),
        (b"\x89PNG\r\n\x1a\n", "damaged or cut short"),
        (b"\xff\xd8\xff\xe0", "damaged or cut short"),
    ],
)
def test_what_is_no_radiograph_is_refused_by_name(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(ImageError, match=f"x.png: .*{reason}"):
        decode_radiograph(tmp_path / "x.png", size_px=64)


def test_missing_files_folders_and_oversized_files_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    with (tmp_path / "large.png").open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)  # sparse
    for name, reason in (("gone", "cannot be read"), ("folder", "cannot be read"), ("large", "larger than 256 MiB")):
        with pytest.raises(ImageError, match=f"{name}.png: .*{reason}"):
            verify_radiograph(tmp_path / f"{name}.png")


def test_a_colour_mode_no_radiograph_has_is_refused(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8)).save(tmp_path / "a.jpg")
    with pytest.raises(ImageError, match=r"a\.jpg: has colour mode CMYK"):
        decode_radiograph(tmp_path / "a.jpg", size_px=8)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_every_truncation_is_refused(tmp_path: Path, grey: Grey, suffix: str) -> None:
    content = save(Image.fromarray(grey), tmp_path / f"whole.{suffix}").read_bytes()
    last = len(content) if suffix == "png" else len(content) - 2  # a JPEG may lack its end marker
    for length in [*range(0, last, 97), last - 1]:
        (tmp_path / "cut").write_bytes(content[:length])
        with pytest.raises(ImageError, match="cut"):
            decode_radiograph(tmp_path / "cut", size_px=64)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "I;16"])
@pytest.mark.parametrize("seed", range(25))
def test_a_flipped_bit_never_changes_a_png_unseen(tmp_path: Path, grey: Grey, mode: str, seed: int) -> None:
    picture = Image.fromarray(grey.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(grey).convert(mode)
    path = save(picture, tmp_path / "a.png")
    content, draw = bytearray(path.read_bytes()), random.Random(seed)
    content[draw.randrange(8, len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)
    with pytest.raises(ImageError, match=r"a\.png"):
        decode_radiograph(path, size_px=64)


@pytest.mark.parametrize("seed", range(60))
def test_a_damaged_file_is_read_or_refused_by_name_and_nothing_else(tmp_path: Path, grey: Grey, seed: int) -> None:
    draw = random.Random(seed)
    path = save(Image.fromarray(grey), tmp_path / draw.choice(["a.png", "a.jpg"]))
    content = bytearray(path.read_bytes())
    for _ in range(draw.randrange(1, 20)):
        content[draw.randrange(3, min(len(content), draw.choice([60, 10**6])))] = draw.randrange(256)
    path.write_bytes(content)
    message = f"{path}: "
    try:
        assert decode_radiograph(path, size_px=32).shape == (32, 32)
    except ImageError as error:
        message = str(error)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message


def test_importing_leaves_pillow_as_it_is() -> None:
    from PIL import ImageFile

    assert Image.MAX_IMAGE_PIXELS == 1024 * 1024 * 1024 // 4 // 3
    assert not ImageFile.LOAD_TRUNCATED_IMAGES
