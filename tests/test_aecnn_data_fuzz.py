"""Damaged and hostile files: each is read or refused in a sentence that names it, soon and within bounded memory.

The files are read in a process of their own, whose memory is limited and which a timer ends at the first file that
takes too long: a crash, a hang or a swollen memory names the file and leaves the tests standing.
"""

import gzip
import io
import json
import random
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian, JPEG2000Lossless, JPEGLSLossless, RLELossless

from aecnn.findings import FINDINGS
from dicom_files import LOSSLESS_JPEG, dataset_of, file_of

NUM_IMAGES = 240
NUM_TABLES = 200
SECONDS_A_FILE = 60  # the slowest takes ten on an idle core
MEMORY_MIB = 3072

READER = """
import json, resource, signal, sys, time
from pathlib import Path
from aecnn.config import FilesConfig
from aecnn.data.images import decode_radiograph, verify_radiograph
from aecnn.data.manifest import parse_manifest, read_manifest
from aecnn.errors import AecnnError

def refusal(task):
    try:
        task()
    except AecnnError as error:
        return str(error)
    return ""

def read_image(path):
    return [refusal(lambda: verify_radiograph(path)), refusal(lambda: decode_radiograph(path, size_px=32))]

def read_table(path):
    parsed = parse_manifest(path.parent, require_images=False)
    assert parsed.manifest is not None or parsed.faults
    return [refusal(lambda: read_manifest(path.parent, require_images=False))]

read = {"images": read_image, "tables": read_table}[sys.argv[1]]
seconds, mib = int(sys.argv[2]), int(sys.argv[3])
read(Path(sys.argv[4]))  # whatever is imported late is in memory before the limit
resource.setrlimit(resource.RLIMIT_AS, (mib << 20, mib << 20))
for name in sys.argv[4:]:
    print(json.dumps({"file": name}), flush=True)
    signal.alarm(seconds)
    start = time.perf_counter()
    messages = read(Path(name))
    signal.alarm(0)
    print(json.dumps({"messages": messages, "seconds": time.perf_counter() - start}), flush=True)
print(json.dumps({"peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}))
"""


def read_apart(kind: str, paths: list[Path]) -> dict[Path, list[str]]:
    """What each file was refused with, '' where it was read; fails where the process did not live to the end."""
    command = [sys.executable, "-c", READER, kind, str(SECONDS_A_FILE), str(MEMORY_MIB), *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, f"ended with {done.returncode} at {lines[-1:]}: {done.stderr[-2000:]}"
    assert done.stderr == ""  # no chatter of codecs
    return {Path(file["file"]): result["messages"] for file, result in zip(lines[:-1:2], lines[1::2], strict=True)}


def check_messages(found: dict[Path, list[str]]) -> None:
    for path, messages in found.items():
        for message in filter(None, messages):
            assert message.startswith(f"{path}: ")
            assert "\n" not in message
            assert len(message) < len(str(path)) + 500


def encoded(picture: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def sound_pictures(grey: Image.Image) -> dict[str, bytes]:
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    return {
        "l.png": encoded(grey, "PNG"),
        "rgba.png": encoded(grey.convert("RGBA"), "PNG"),
        "p.png": encoded(grey.convert("P"), "PNG"),
        "bits.png": encoded(grey.convert("1"), "PNG"),
        "deep.png": encoded(deep, "PNG"),
        "l.jpg": encoded(grey, "JPEG"),
        "rgb.jpg": encoded(grey.convert("RGB"), "JPEG"),
        "progressive.jpg": encoded(grey, "JPEG", progressive=True),
    }


def sound_dicoms(grey: Image.Image) -> dict[str, bytes]:
    values = np.asarray(grey)
    deep = values.astype("<u2") << 4
    lut = Dataset()
    lut.LUTDescriptor, lut.LUTData = [256, 0, 12], [16 * index for index in range(256)]
    lut["LUTDescriptor"].VR = lut["LUTData"].VR = "US"
    rich = dataset_of(values, VOILUTSequence=[lut], WindowCenter=99, WindowWidth=200, PatientOrientation=["R", "F"])
    rich.RescaleSlope, rich.RescaleIntercept = 1, 0
    files = {"rich.dcm": file_of(rich), "implicit.dcm": file_of(rich, syntax=ImplicitVRLittleEndian)}
    for syntax in (ExplicitVRBigEndian, RLELossless, *LOSSLESS_JPEG, JPEGLSLossless, JPEG2000Lossless):
        files[f"{syntax[17:]}.dcm"] = file_of(dataset_of(deep, bits=12), syntax=syntax)
    return files


def damaged(content: bytes, draw: random.Random, *, other: bytes) -> bytes:
    """One of the ways in which a picture arrives damaged; `other` is another file, of another kind perhaps."""
    kind, length = draw.randrange(8), len(content)
    place = draw.randrange(length)
    if kind == 0:
        return content[:place]
    if kind == 1:  # one bit
        return content[:place] + bytes([content[place] ^ (1 << draw.randrange(8))]) + content[place + 1 :]
    if kind == 2:  # some bytes, mostly of the header
        changed = bytearray(content)
        for _ in range(draw.randrange(1, 20)):
            changed[draw.randrange(min(length, draw.choice([60, 1000, length])))] = draw.choice([0, 1, 127, 255])
        return bytes(changed)
    if kind == 3:  # numbers blown up
        at = draw.randrange(min(length - 4, draw.choice([64, 600, length])))
        return content[:at] + draw.choice([b"\xff" * 4, b"\x7f\xff\xff\xff", b"\0\0\0\x80"]) + content[at + 4 :]
    if kind == 4:  # a part is missing, or there twice
        end = draw.randrange(place, length)
        return content[:place] + draw.choice([b"", content[place:end] * 2]) + content[end:]
    if kind == 5:
        return content[:place] + other[draw.randrange(len(other)) :]
    if kind == 6:
        return content[:place] + draw.randbytes(draw.randrange(1, 300)) + content[place:]
    return content[: draw.randrange(1, 12)] + draw.randbytes(draw.randrange(2000))


@pytest.mark.slow
def test_damaged_pictures_are_read_or_refused_by_name(tmp_path: Path, phantom_64px: Path) -> None:
    with Image.open(sorted((phantom_64px / "images").glob("*.png"))[0]) as picture:
        grey = picture.convert("L")
    sound = {**sound_pictures(grey), **sound_dicoms(grey)}
    paths = []
    for name, content in sound.items():
        paths.append(tmp_path / name)
        paths[-1].write_bytes(content)
    for seed in range(NUM_IMAGES):
        draw = random.Random(seed)
        name = draw.choice(sorted(sound))
        paths.append(tmp_path / f"{seed}-{name}")
        paths[-1].write_bytes(damaged(sound[name], draw, other=sound[draw.choice(sorted(sound))]))
    found = read_apart("images", paths)
    check_messages(found)
    assert all(found[tmp_path / name] == ["", ""] for name in sound)
    assert sum(any(messages) for messages in found.values()) > NUM_IMAGES // 2  # most damage is noticed


@pytest.mark.slow
def test_damaged_real_pictures_are_read_or_refused_by_name(tmp_path: Path, real_data: Path) -> None:
    pngs = sorted((real_data / "nih_1024px" / "images").iterdir())[:4]
    sound = [*pngs, *sorted((real_data / "nih_dicom").glob("*.dcm"))]
    paths = []
    for seed in range(60):
        draw = random.Random(seed)
        path = draw.choice(sound)
        paths.append(tmp_path / f"{seed}-{path.name}")
        paths[-1].write_bytes(damaged(path.read_bytes(), draw, other=draw.choice(sound).read_bytes()))
    check_messages(read_apart("images", paths))


def chunk(kind: bytes, content: bytes, *, length: int | None = None) -> bytes:
    size = len(content) if length is None else length
    return struct.pack(">I", size) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, *parts: bytes, depth: int = 8, colours: int = 0) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colours, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(parts) + chunk(b"IEND", b"")


def hostile_pictures() -> Iterator[tuple[str, bytes]]:
    zeros = zlib.compress(b"\0" * 100 * 2**20, 9)  # 100 KB
    rows = chunk(b"IDAT", zlib.compress(b"\0" * (65 * 64)))
    yield "wide.png", png(2**31 - 1, 1, rows)
    yield "vast.png", png(100_000, 100_000, chunk(b"IDAT", zeros))
    yield "bomb.png", png(64, 64, chunk(b"IDAT", zeros))
    yield "largest.png", png(8192, 8192, chunk(b"IDAT", zlib.compress(b"\0" * 8193 * 8192, 9)))
    yield "largest_deep.png", png(8192, 8192, chunk(b"IDAT", zlib.compress(b"\0" * 16385 * 8192, 9)), depth=16)
    yield "short.png", png(8192, 8192, rows, colours=6)
    yield "text.png", png(64, 64, chunk(b"zTXt", b"a\0\0" + zeros), rows)
    yield "profile.png", png(64, 64, chunk(b"iCCP", b"a\0\0" + zeros), rows)
    yield "chunks.png", png(64, 64, chunk(b"aaAa", b"") * 500_000, rows)
    yield "lie.png", png(64, 64, chunk(b"IDAT", zlib.compress(b"\0" * 4160), length=2**31), rows)
    yield "longest_lie.png", png(64, 64, chunk(b"IDAT", b"", length=2**32 - 1))
    yield "no_rows.png", png(64, 64)
    yield "no_palette.png", png(64, 64, rows, colours=3)
    yield "twice.png", png(64, 64, chunk(b"IHDR", struct.pack(">IIBBBBB", 9000, 9000, 8, 0, 0, 0, 0)), rows)
    yield "nothing.png", b""
    yield "only_magic.png", b"\x89PNG\r\n\x1a\n"
    yield "table.png", b"Image Index,Finding Labels\n" * 100
    jpeg = encoded(Image.new("L", (64, 64), 90), "JPEG", progressive=True)
    size = jpeg.index(b"\xff\xc2") + 5
    scan = jpeg.index(b"\xff\xda")
    for name, side in (("vast.jpg", 65_535), ("largest.jpg", 8192), ("none.jpg", 0)):
        yield name, jpeg[:size] + struct.pack(">HH", side, side) + jpeg[size + 4 :]
    large = encoded(Image.new("L", (8192, 8192), 90), "JPEG", progressive=True)
    yield "scans.jpg", large[:-2] + large[large.index(b"\xff\xda") : -2] * 300 + b"\xff\xd9"
    yield "marks.jpg", jpeg[:scan] + b"\xff" * 2**20 + jpeg[scan:]


def element(tag: int, vr: bytes, content: bytes, *, length: int | None = None) -> bytes:
    size = len(content) if length is None else length
    head = struct.pack("<HH", tag >> 16, tag & 0xFFFF) + vr
    long = vr in (b"SQ", b"OB", b"OW", b"UN", b"UT")
    return head + (struct.pack("<HI", 0, size) if long else struct.pack("<H", size)) + content


def hostile_dicoms() -> Iterator[tuple[str, bytes]]:
    values = np.full((64, 64), 300, dtype="<u2")
    sound = file_of(dataset_of(values, bits=12))
    group = sound.index(b"\x28\x00\x02\x00US")  # before the first element of the picture
    pixels = sound.index(b"\xe0\x7f\x10\0OW")
    head, picture, tail = sound[:group], sound[group:pixels], sound[pixels:]
    item, item_end, end = b"\xfe\xff\x00\xe0", b"\xfe\xff\x0d\xe0" + bytes(4), b"\xfe\xff\xdd\xe0" + bytes(4)
    unknown = 2**32 - 1

    def compressed(syntax: str, frame: bytes, *, rows: int = 64) -> bytes:
        content = file_of(dataset_of(np.zeros((rows, 64), dtype="<u2"), bits=12), syntax=RLELossless)
        padded = syntax.encode() + b"\0" * (len(syntax) % 2)
        old, new = RLELossless.encode() + b"\0", struct.pack("<H", len(padded)) + padded
        content = content.replace(struct.pack("<H", len(old)) + old, new)
        place = content.rindex(b"\xe0\x7f\x10\0OB") + 12
        return content[:place] + item + bytes(4) + item + struct.pack("<I", len(frame)) + frame + end

    def side(tag: bytes, pixels: int) -> bytes:
        return tag + b"US\x02\x00" + struct.pack("<H", pixels)

    huge = picture.replace(side(b"\x28\x00\x10\x00", 64), side(b"\x28\x00\x10\x00", 65_535))
    huge = huge.replace(side(b"\x28\x00\x11\x00", 64), side(b"\x28\x00\x11\x00", 65_535))
    yield "huge.dcm", head + huge + tail
    yield "largest.dcm", head + huge.replace(struct.pack("<H", 65_535), struct.pack("<H", 8192)) + tail
    opened = element(0x00091010, b"SQ", b"", length=unknown) + item + struct.pack("<I", unknown)
    for depth in (50, 5_000, 200_000):
        yield f"deep_{depth}.dcm", head + opened * depth + (item_end + end) * depth + picture + tail
    yield "never_closed.dcm", head + opened * 100 + picture + tail
    items = element(0x00091010, b"SQ", (item + bytes(4)) * 2_000_000 + end, length=unknown)
    yield "items.dcm", head + items + picture + tail
    luts = element(0x00283010, b"SQ", (item + bytes(4)) * 2_000_000)
    yield "luts.dcm", head + picture + luts + tail
    yield "elements.dcm", head + element(0x00191010, b"CS", b"") * 2_000_000 + picture + tail
    yield "text.dcm", head + picture + element(0x00281050, b"UT", b"1\\" * 20_000_000) + tail
    yield "lie.dcm", head + element(0x00191010, b"CS", b"", length=65_535) + picture + tail
    yield "long_lie.dcm", head + element(0x00191010, b"UN", b"", length=2**31) + picture + tail
    yield "pixels_lie.dcm", head + picture + element(0x7FE00010, b"OW", bytes(100), length=2**32 - 2)
    yield (
        "not_a_number.dcm",
        head + picture + element(0x00281050, b"DS", b"nan ") + element(0x00281051, b"DS", b"inf ") + tail,
    )
    lut = element(0x00283002, b"US", struct.pack("<H", 9)) + element(0x00283006, b"US", b"")
    yield "lut.dcm", head + picture + element(0x00283010, b"SQ", item + struct.pack("<I", len(lut)) + lut) + tail
    yield "preamble_only.dcm", bytes(128) + b"DICM"
    yield "no_preamble.dcm", sound[132:]
    packed = zlib.compressobj(9, wbits=-15)
    deflated = packed.compress(bytes(500 * 2**20)) + packed.flush()
    explicit, deflate = b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.1.99"
    meta = head.replace(b"UI" + struct.pack("<H", 20) + explicit, b"UI" + struct.pack("<H", 22) + deflate)
    yield "deflated.dcm", meta[: meta.index(b"\x08\x00\x16\x00UI")] + deflated
    runs = struct.pack("<16I", 2, 64, 50_000_064, *[0] * 13) + b"\x81\x00" * 50_000_000
    yield "runs.dcm", compressed(RLELossless, runs)
    yield "segments.dcm", compressed(RLELossless, struct.pack("<16I", 2**32 - 1, *[2**32 - 1] * 15))
    many = compressed(RLELossless, b"")[: -len(end)] + (item + bytes(4)) * 2_000_000 + end
    yield "fragments.dcm", many
    lossless = b"\xff\xd8\xff\xc3" + struct.pack(">HBHHBBBB", 11, 16, 64, 64, 1, 1, 0x11, 0)
    second = b"\xff\xc3" + struct.pack(">HBHHBBBB", 11, 16, 65_535, 65_535, 1, 1, 0x11, 0)
    codes = b"\xff\xc4" + struct.pack(">HB", 20, 0) + bytes([1, *[0] * 15]) + b"\0"
    scan = b"\xff\xda" + struct.pack(">HBBBBBB", 8, 1, 1, 0, 1, 0, 0)
    yield "sizes.dcm", compressed(LOSSLESS_JPEG[1], lossless + second + codes + scan + bytes(100))
    yield "no_codes.dcm", compressed(LOSSLESS_JPEG[1], lossless + scan + bytes(100))
    yield "marks.dcm", compressed(LOSSLESS_JPEG[1], lossless + codes + scan + b"\xff" * 5_000_000 + b"\0")
    yield "restarts.dcm", compressed(LOSSLESS_JPEG[1], lossless + codes + scan + b"\xff\xd0" * 5_000_000)
    sizes = struct.pack(">HHIIIIIIIIH", 41, 0, 64, 64, 0, 0, 1, 1, 0, 0, 1) + b"\x0b\x01\x01"
    yield "tiles.dcm", compressed(JPEG2000Lossless, b"\xff\x4f\xff\x51" + sizes + bytes(200))
    whole = sizes.replace(struct.pack(">IIII", 64, 64, 0, 0), struct.pack(">IIII", 2**31 + 64, 64, 2**31, 0))
    yield "offset.dcm", compressed(JPEG2000Lossless, b"\xff\x4f\xff\x51" + whole + bytes(200))


READ = {"bomb.png", "largest.png", "largest_deep.png", "largest.jpg", "deep_50.dcm", "runs.dcm"}


@pytest.mark.slow
@pytest.mark.parametrize("make", [hostile_pictures, hostile_dicoms])
def test_hostile_pictures_are_refused_soon_and_within_bounded_memory(
    tmp_path: Path, make: Callable[[], Iterator[tuple[str, bytes]]]
) -> None:
    paths = []
    for name, content in make():
        paths.append(tmp_path / name)
        paths[-1].write_bytes(content)
    found = read_apart("images", paths)
    check_messages(found)
    read = {path.name for path, messages in found.items() if not any(messages)}
    assert read <= READ


HEADER = "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position"
TABLE = "\n".join(
    [HEADER, *(f"{n:08}_000.png,{FINDINGS[n % 14]},0,{n},{20 + n}Y,{'FM'[n % 2]},PA" for n in range(40))]
).encode()


def damaged_table(content: bytes, draw: random.Random) -> bytes:
    """One of the ways in which a table arrives damaged."""
    kind, cut, lines = draw.randrange(14), draw.randrange(len(content)), content.split(b"\n")
    fields = lines[draw.randrange(1, len(lines))]
    if kind == 0:
        return content[:cut]
    if kind == 1:
        return content[:cut] + draw.randbytes(8) + content[cut + 8 :]
    if kind == 2:
        return draw.randbytes(draw.randrange(1, 4000))
    if kind == 3:
        return content.replace(b",", draw.choice([b";", b"\t", b",,", b"", b'"', b'",', b"\n"]))
    if kind == 4:
        lines[draw.randrange(len(lines))] = draw.choice([b"", b'"', b",,,", b"\0", b"a" * 200_000, b"," * 5000])
    elif kind == 5:
        return gzip.compress(content)[: draw.randrange(1, 400)]
    elif kind == 6:
        return content.decode().encode(draw.choice(["utf-16", "utf-32", "utf-7"]))
    elif kind == 7:
        lines = draw.sample(lines, k=len(lines))
    elif kind == 8:  # a quote that is never closed
        return content[:cut] + b'"' + content[cut:]
    elif kind == 9:  # numbers that are none
        number = draw.choice([b"9" * 5000, b"1e999", b"-0", b"nan", b"0x10", "٣".encode(), b"1_000", b"\xc2\xb2"])
        column = draw.choice([2, 3, 4])
        for index in range(1, len(lines)):
            cells = lines[index].split(b",")
            cells[column] = number
            lines[index] = b",".join(cells)
    elif kind == 10:  # names that are paths, or none
        lines = [
            line.replace(b"_000.png", draw.choice([b"/../../x", b"\\x", b" ", b"\t", b"\x1b[2J"])) for line in lines
        ]
    elif kind == 11:
        lines += [fields] * draw.randrange(1, 3000)
    elif kind == 12:
        lines[0] = draw.choice([b"", HEADER.encode() * 50, HEADER.encode().replace(b"Patient ID", b"Image Index")])
    else:
        return gzip.compress(content) + draw.choice([b"", b"\0" * 100, b"more", gzip.compress(content)])
    return b"\n".join(lines)


def hostile_tables() -> Iterator[bytes]:
    yield gzip.compress(b"\0" * 700 * 2**20)
    yield gzip.compress(b"a\n" * 60_000_000)
    yield gzip.compress(b"," * 120_000_000)
    yield gzip.compress(HEADER.encode() + b"\n" + b",,,,,,\n" * 10_000_000)
    yield gzip.compress(HEADER.encode() + b"\n" + b"a,,,,,,\n" * 300_000)  # three faults a row
    yield gzip.compress(b'"' * 120_000_000)
    yield gzip.compress(b'"' + b"\n" * 1_000_000)
    yield gzip.compress(gzip.compress(b"a" * 10_000_000))
    yield b"\xef\xbb\xbf" * 1000


def write_tables(root: Path, contents: list[bytes], *, name: str) -> list[Path]:
    paths = []
    for number, content in enumerate(contents):
        paths.append(root / str(number) / name)
        paths[-1].parent.mkdir()
        if name != "Data_Entry_2017.csv":
            (paths[-1].parent / "Data_Entry_2017.csv").write_bytes(TABLE)
            (paths[-1].parent / "test_list.txt").write_bytes(b"")
        paths[-1].write_bytes(content)
    return paths


def check_table_messages(found: dict[Path, list[str]]) -> None:
    for path, messages in found.items():
        for message in filter(None, messages):
            assert path.name in message
            assert all(len(line) < 1000 for line in message.splitlines())
            assert message.isprintable() or all(line.isprintable() for line in message.splitlines())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Data_Entry_2017.csv", "train_val_list.txt"])
def test_damaged_tables_are_read_or_refused_by_name(tmp_path: Path, name: str) -> None:
    content = TABLE if name.endswith("csv") else b"\n".join(line.split(b",")[0] for line in TABLE.split(b"\n")[1:])
    contents = [content]
    for seed in range(NUM_TABLES if name.endswith("csv") else 60):
        contents.append(damaged_table(content if b"," in content else TABLE, random.Random(seed)))
    found = read_apart("tables", write_tables(tmp_path, contents, name=name))
    check_table_messages(found)
    assert found[tmp_path / "0" / name] == [""]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Data_Entry_2017.csv", "train_val_list.txt"])
def test_hostile_tables_are_refused_soon_and_within_bounded_memory(tmp_path: Path, name: str) -> None:
    found = read_apart("tables", write_tables(tmp_path, list(hostile_tables()), name=name))
    check_table_messages(found)
    assert all(any(messages) for messages in found.values())
