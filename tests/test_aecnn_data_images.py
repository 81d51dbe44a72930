"""Decoding against plain NumPy, on real radiographs and on files made or damaged here."""

import os
import random
import signal
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from aecnn.config import FilesConfig
from aecnn.data.images import (
    MAX_FILE_BYTES,
    MAX_JPEG_PARTS,
    MAX_PNG_PARTS,
    MAX_SIDE_PX,
    decode_content,
    decode_radiograph,
    open_content,
    read_file,
    square_and_scale,
    verify_radiograph,
)
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


def png_bytes(*, width: int, height: int, bit_depth: int, rows: bytes, colours: int = 0) -> bytes:
    """A PNG written by hand, so that its header can lie; grey, or of the colour type given."""
    header = struct.pack(">IIBBBBB", width, height, bit_depth, colours, 0, 0, 0)
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


def sixteen_bits(values: npt.NDArray[np.uint16]) -> bytes:
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return png_bytes(width=values.shape[1], height=values.shape[0], bit_depth=16, rows=rows)


@pytest.mark.parametrize("bits", range(8, 17))
def test_declared_bits_say_which_eight_are_kept(bits: int) -> None:
    values = np.random.default_rng(bits).integers(0, 1 << bits, size=(24, 32)).astype(np.uint16)
    values[3, 5] = (1 << bits) - 1
    found = open_content(sixteen_bits(values), Path("a.png"), files=FilesConfig(bits_stored=bits))
    assert np.array_equal(found.grey, values // 2 ** (bits - 8))
    assert (found.format, found.bits, found.bits_used) == ("PNG", 16, bits)


def test_a_value_above_the_declared_bits_is_refused() -> None:
    values = np.array([[0, 5000]], dtype=np.uint16)
    reason = r"a\.png: has a value of 5000, and files\.bits_stored 12 allows up to 4095: set files\.bits_stored to 13"
    with pytest.raises(ImageError, match=reason):
        decode_content(sixteen_bits(values), Path("a.png"), size_px=8, files=FilesConfig(bits_stored=12))


def test_sixteen_bit_colours_are_read_whole_or_refused(tmp_path: Path) -> None:
    colours = np.repeat(np.arange(64).reshape(8, 8, 1) * 1000, 3, axis=2)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in colours)
    content = png_bytes(width=8, height=8, bit_depth=16, rows=rows, colours=2)
    found = open_content(content, tmp_path / "a.png")
    assert np.array_equal(found.grey, colours[..., 0] >> 8)
    assert (found.mode, found.bits, found.bits_used) == ("RGB", 16, 16)
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(ImageError, match=r"a\.png: has 16-bit colours, and files\.bits_stored 12 is for grey"):
        verify_radiograph(tmp_path / "a.png", files=FilesConfig(bits_stored=12))


def test_the_bits_that_are_used_are_told(tmp_path: Path, grey: Grey) -> None:
    for kind in ("png", "jpg"):
        path = save(Image.fromarray(np.full_like(grey, 100)), tmp_path / f"a.{kind}")
        found = open_content(path.read_bytes(), path)
        assert (found.format, found.mode, found.bits, found.bits_used) == (
            {"png": "PNG", "jpg": "JPEG"}[kind],
            "L",
            8,
            7,
        )


@pytest.mark.parametrize("interlaced", [False, True])
def test_colours_become_luminance(tmp_path: Path, interlaced: bool) -> None:
    colours = np.random.default_rng(8).integers(0, 256, size=(32, 32, 3))
    expected = colours @ [0.299, 0.587, 0.114]
    for mode in ("RGB", "RGBA", "P"):
        picture = Image.fromarray(colours.astype(np.uint8)).convert(mode)
        if mode == "P":
            expected = np.asarray(picture.convert("RGB")) @ np.array([0.299, 0.587, 0.114])
        picture.save(tmp_path / "a.png", interlace=interlaced)
        assert np.abs(decode_radiograph(tmp_path / "a.png", size_px=32) - expected).max() <= 0.51


def test_what_is_read_can_be_written_to(tmp_path: Path, grey: Grey) -> None:
    path = save(Image.fromarray(grey), tmp_path / "a.png")
    for size_px in (64, 32, 48, 96):
        assert decode_radiograph(path, size_px=size_px).flags.writeable


def test_a_jpeg_is_read(tmp_path: Path) -> None:
    smooth = np.add.outer(np.arange(64), np.arange(64)).astype(np.uint8)
    Image.fromarray(smooth).save(tmp_path / "a.jpg", quality=98)
    assert np.abs(decode_radiograph(tmp_path / "a.jpg", size_px=64).astype(int) - smooth).max() <= 3


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_shrinking_takes_the_mean_over_the_area(tmp_path: Path, grey: Grey, factor: int) -> None:
    side = 64 // factor
    means = grey.reshape(side, factor, side, factor).mean(axis=(1, 3))
    found = decode_radiograph(save(Image.fromarray(grey), tmp_path / "a.png"), size_px=side)
    assert np.abs(found - means).max() <= 0.5


def test_shrinking_by_a_broken_factor_takes_the_mean_of_the_pixels_whose_centres_are_inside(grey: Grey) -> None:
    weights = np.zeros((48, 64))
    for new in range(48):
        inside = [old for old in range(64) if new * 64 / 48 <= old + 0.5 < (new + 1) * 64 / 48]
        weights[new, inside] = 1 / len(inside)
    assert np.abs(square_and_scale(grey, size_px=48) - weights @ grey @ weights.T).max() <= 1.0  # rounded twice


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
        assert np.abs(decode_radiograph(path, size_px=256) - means).max() <= 0.5


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
        (b"no picture at all", "neither PNG, JPEG nor DICOM"),
        (b"GIF89a" + b"\0" * 50, "neither PNG, JPEG nor DICOM"),
        (b"\x89PNG\r\n\x1a\n", "damaged or cut short"),
        (b"\x89PNG\r\n\x1a\n" + png_chunk(b"IDAT", b"") + png_chunk(b"IEND", b""), "its first part is 'IDAT'"),
        (b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", b"") * (MAX_PNG_PARTS + 1), "it has over 65536 parts"),
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
    for name, reason in (
        ("gone", "cannot be read"),
        ("folder", "is no ordinary file"),
        ("large", "larger than 256 MiB"),
    ):
        with pytest.raises(ImageError, match=f"{name}.png: .*{reason}"):
            verify_radiograph(tmp_path / f"{name}.png")


@pytest.mark.parametrize("kind", ["pipe", "link to a pipe", "device"])
def test_pipes_and_devices_are_refused_instead_of_waited_for(tmp_path: Path, kind: str) -> None:
    def give_up(*_: object) -> None:
        raise TimeoutError("it hangs")

    path = tmp_path / "a.png"
    if kind == "device":
        path.symlink_to("/dev/zero")
    else:
        os.mkfifo(path)
        if kind == "link to a pipe":
            path = tmp_path / "b.png"
            path.symlink_to(tmp_path / "a.png")
    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(5)
    try:
        with pytest.raises(ImageError, match=rf"{path.name}: is no ordinary file"):
            read_file(path)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("change", [b"more", -1])
def test_a_file_that_changes_its_size_while_it_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: bytes | int
) -> None:
    path, fstat = tmp_path / "a.png", os.fstat
    path.write_bytes(b"0123456789")

    def then_changed(descriptor: int) -> os.stat_result:
        found = fstat(descriptor)
        if isinstance(change, bytes):
            path.write_bytes(b"0123456789" + change)
        else:
            os.truncate(path, 10 + change)
        return found

    assert read_file(path) == b"0123456789"
    monkeypatch.setattr(os, "fstat", then_changed)
    with pytest.raises(ImageError, match=r"a\.png: changed its size while it was read"):
        read_file(path)


# EXIF 2.32, table 6: the sides of the scene on which the stored first row and the stored first column are
SIDES = {
    1: ("top", "left"),
    2: ("top", "right"),
    3: ("bottom", "right"),
    4: ("bottom", "left"),
    5: ("left", "top"),
    6: ("right", "top"),
    7: ("right", "bottom"),
    8: ("left", "bottom"),
}


def scene_of(stored: Grey, orientation: int) -> Grey:
    """The stored pixels put where the standard says, one by one."""
    height, width = stored.shape
    scene = np.zeros((width, height) if orientation >= 5 else (height, width), dtype=np.uint8)
    for row in range(height):
        for column in range(width):
            place = {}
            for side, distance in zip(SIDES[orientation], (row, column), strict=True):
                axis, is_far = ("y" if side in ("top", "bottom") else "x"), side in ("bottom", "right")
                length = scene.shape[0] if axis == "y" else scene.shape[1]
                place[axis] = length - 1 - distance if is_far else distance
            scene[place["y"], place["x"]] = stored[row, column]
    return scene


@pytest.mark.parametrize("kind", ["jpg", "rgb.jpg", "png", "deep.png"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_as_exif_says(tmp_path: Path, grey: Grey, orientation: int, kind: str) -> None:
    picture = Image.fromarray(grey[:32, :48])
    if kind == "rgb.jpg":
        picture = picture.convert("RGB")
    if kind == "deep.png":
        picture = Image.fromarray(grey[:32, :48].astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x010F], exif[0x0112], exif[0x0131] = "a maker", orientation, "a program"
    picture.save(tmp_path / f"plain.{kind}")
    picture.save(tmp_path / f"turned.{kind}", exif=exif)
    plain, turned = (open_content(path.read_bytes(), path).grey for path in sorted(tmp_path.iterdir()))
    assert np.array_equal(turned, scene_of(plain, orientation))
    assert turned.flags.c_contiguous
    assert turned.flags.writeable


def tiff(*entries: bytes, order: str = ">", count: int | None = None, place: int = 8) -> bytes:
    magic = b"MM\0*" if order == ">" else b"II*\0"
    number = len(entries) if count is None else count
    return magic + struct.pack(f"{order}I", place) + struct.pack(f"{order}H", number) + b"".join(entries)


@pytest.mark.parametrize("order", "<>")
def test_exif_is_read_in_both_byte_orders(tmp_path: Path, grey: Grey, order: str) -> None:
    exif = tiff(struct.pack(f"{order}HHIHH", 0x0112, 3, 1, 3, 0), order=order)
    Image.fromarray(grey).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(decode_radiograph(tmp_path / "a.png", size_px=64), grey[::-1, ::-1])


TURNED = struct.pack(">HHIHH", 0x0112, 3, 1, 3, 0)


@pytest.mark.parametrize(
    "exif",
    [
        b"",
        b"MM",
        b"no TIFF at all",
        tiff(TURNED, place=2**32 - 1),
        tiff(TURNED)[:-4],
        tiff(count=65_535),
        tiff(struct.pack(">HHIHH", 0x0112, 3, 1, 0, 0)),
        tiff(struct.pack(">HHIHH", 0x0112, 3, 1, 9, 0)),
        tiff(struct.pack(">HHII", 0x0112, 4, 1, 3)),  # of another type than the standard's
    ],
)
@pytest.mark.parametrize("kind", ["png", "jpg"])
def test_damaged_exif_leaves_the_picture_as_it_is(tmp_path: Path, grey: Grey, exif: bytes, kind: str) -> None:
    path = save(Image.fromarray(grey), tmp_path / f"a.{kind}")
    expected, content = decode_radiograph(path, size_px=64), path.read_bytes()
    if kind == "png":
        content = content[:-12] + png_chunk(b"eXIf", exif) + content[-12:]
    else:
        content = content[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 8) + b"Exif\0\0" + exif + content[2:]
    assert np.array_equal(decode_content(content, path, size_px=64), expected)


def test_a_png_text_that_is_named_exif_is_no_orientation(tmp_path: Path, grey: Grey) -> None:
    content = save(Image.fromarray(grey), tmp_path / "a.png").read_bytes()
    content = content[:33] + png_chunk(b"iTXt", b"exif\0\0\0\0\0MM") + content[33:]
    assert np.array_equal(decode_content(content, Path("a.png"), size_px=64), grey)


def test_the_first_of_several_exif_parts_counts_and_endless_ones_are_refused(tmp_path: Path, grey: Grey) -> None:
    path = save(Image.fromarray(grey), tmp_path / "a.jpg")
    expected, content = decode_radiograph(path, size_px=64), path.read_bytes()
    first, part = (
        b"\xff\xe1" + struct.pack(">H", len(exif) + 8) + b"Exif\0\0" + exif
        for exif in (tiff(TURNED), tiff(count=65_535) + bytes(60_000))
    )
    several = content[:2] + b"\xff\xff" + first + part * 100 + content[2:]
    assert np.array_equal(decode_content(several, path, size_px=64), expected[::-1, ::-1])
    with pytest.raises(ImageError, match=r"a\.jpg: .*it has over 4096 parts before its pixels"):
        decode_content(
            content[:2] + part[:2] + b"\0\2" + b"\xff\xe1\0\2" * MAX_JPEG_PARTS + content[2:], path, size_px=64
        )


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


def test_importing_leaves_pillow_as_it_is() -> None:
    from PIL import ImageFile

    assert Image.MAX_IMAGE_PIXELS == 1024 * 1024 * 1024 // 4 // 3
    assert not ImageFile.LOAD_TRUNCATED_IMAGES
