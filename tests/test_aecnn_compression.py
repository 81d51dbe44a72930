"""Compressed files: what comes back is what the model makes of 8-bit latents; every lie is refused in a sentence."""

import hashlib
import json
import struct
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

import aecnn.commands.compression
from aecnn.compression.codec import (
    compress_files,
    decoder_fingerprint,
    decompress_file,
    dequantise,
    quantise,
    read_latent,
)
from aecnn.compression.format import MAGIC, Header, Origin, Record, open_compressed, write_compressed
from aecnn.compression.packing import max_packed_bytes, pack, unpack
from aecnn.config import ImagesConfig, ModelConfig
from aecnn.data.images import decode_radiograph
from aecnn.errors import CompressedFileError
from aecnn.model.checkpoint import CheckpointMetadata, load_checkpoint, save_checkpoint
from aecnn.model.joint import build_model
from aecnn.model.weights import weights_of

SIZE_PX = 64
ORIGIN = Origin(backbone="resnet18", run="trial", round=3)


def saved_model(path, *, run, nudge=0.0, images=None):
    """Gives a checkpoint whose decoder is moved away from its start by `nudge`."""
    images = images or ImagesConfig(size_px=SIZE_PX)
    config = ModelConfig(backbone="resnet18")
    weights = weights_of(build_model(config, seed=0, input_size_px=images.input_size_px))
    weights["decoder.0.bias"] = weights["decoder.0.bias"] + np.float32(nudge)
    save_checkpoint(path, weights, CheckpointMetadata(model=config, images=images, run=run, round=2))
    return load_checkpoint(path)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return saved_model(tmp_path_factory.mktemp("model") / "model.safetensors", run="first")


@pytest.fixture(scope="module")
def radiographs(phantom_64px):
    return sorted((phantom_64px / "images").glob("*.png"))[:5]


@pytest.fixture(scope="module")
def compressed(checkpoint, radiographs, tmp_path_factory):
    path = tmp_path_factory.mktemp("compressed") / "images.aec"
    compress_files(radiographs, path, checkpoint)
    return path


def small_file(path, *, header=None, records=None):
    """Writes a sound file of one 4 × 4 latent."""
    header = header or Header(decoder="0" * 64, origin=ORIGIN, image_size_px=16, num_images=1)
    write_compressed(path, header, records or [Record("a.png", pack(np.full((4, 4), 9, dtype=np.uint8)))])
    return path


def forged(parts):
    """Joins parts as the format page says, without any of our code: a checksum of all before it where None stands."""
    content = b""
    for part in parts:
        content += hashlib.sha256(content).digest() if part is None else part
    return content


def header_bytes(**changes):
    document = {
        "format_version": 1,
        "packer": "webp-lossless",
        "decoder": "0" * 64,
        "origin": {"backbone": "resnet18", "run": None, "round": None},
        "image_size_px": 16,
        "num_images": 1,
    }
    text = json.dumps({**document, **changes}).encode()
    return struct.pack("<I", len(text)) + text


def record_bytes(name=b"a.png", packed=None, *, name_length=None, length=None):
    packed = pack(np.zeros((4, 4), dtype=np.uint8)) if packed is None else packed
    name_length = len(name) if name_length is None else name_length
    length = len(packed) if length is None else length
    return struct.pack("<H", name_length) + name + struct.pack("<I", length) + packed


def read_all(path):
    with open_compressed(path) as (header, records):
        return header, [(record.name, read_latent(path, header, record)[0, 0].tolist()) for record in records]


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 40).flatmap(lambda side: arrays.arrays(np.uint8, (side, side), elements=st.integers(0, 255))),
)
def test_packing_loses_nothing_and_keeps_within_its_bound(values):
    packed = pack(values)
    np.testing.assert_array_equal(unpack(packed, size_px=len(values)), values)
    assert len(packed) <= max_packed_bytes(len(values))


def test_noise_packs_within_its_bound():
    noise = np.random.default_rng(0).integers(0, 256, (256, 256), dtype=np.uint8)
    assert len(pack(noise)) <= max_packed_bytes(256)
    np.testing.assert_array_equal(unpack(pack(noise), size_px=256), noise)


def test_eight_bits_are_off_by_half_a_step_at_most_and_come_back_as_they_are():
    latent = torch.linspace(0, 1, 10_001)
    assert (dequantise(quantise(latent)) - latent).abs().max() <= 1 / 510 + 1e-7
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(quantise(dequantise(every)), every)


def test_a_latent_from_disk_is_classified_exactly_as_the_same_8_bit_latent_in_memory(
    checkpoint, radiographs, compressed
):
    model = checkpoint.build()
    pixels = np.stack([np.array(Image.open(path).convert("L")) for path in radiographs])
    images = torch.from_numpy(pixels)[:, None].float() / 255
    with torch.inference_mode():
        latent = torch.cat([model.encode(image[None]) for image in images])
        in_memory = model.classify((latent * 255).round() / 255)[0]
        with open_compressed(compressed) as (header, records):
            stored = np.stack([unpack(record.packed, size_px=header.latent_size_px) for record in records])
        from_disk = torch.from_numpy(stored)[:, None].float() / 255
        assert torch.equal(model.classify(from_disk)[0], in_memory)
    assert (from_disk - latent).abs().max() <= 1 / 510 + 1e-7


def test_decompressing_gives_grey_pngs_of_the_same_names_as_the_decoder_rebuilds_them(
    checkpoint, radiographs, compressed, tmp_path
):
    assert decompress_file(compressed, tmp_path / "out", checkpoint) == len(radiographs)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [path.name for path in radiographs]
    model, first = checkpoint.build(), radiographs[0]
    image = torch.from_numpy(np.array(Image.open(first).convert("L")))[None, None].float() / 255
    with torch.inference_mode():
        expected = model.decode((model.encode(image) * 255).round() / 255) * 255
    with Image.open(tmp_path / "out" / first.name) as picture:
        assert (picture.mode, picture.size) == ("L", (SIZE_PX, SIZE_PX))
        np.testing.assert_array_equal(np.array(picture), expected.round().byte()[0, 0].numpy())


def test_the_centre_crop_is_kept_where_the_model_has_one(radiographs, tmp_path):
    images = ImagesConfig(size_px=72, crop_size_px=64)
    cropping = saved_model(tmp_path / "m.safetensors", run="crop", images=images)
    done = compress_files(radiographs[:1], tmp_path / "a.aec", cropping)
    decompress_file(tmp_path / "a.aec", tmp_path / "out", cropping)
    whole = decode_radiograph(radiographs[0], size_px=72).astype(float)
    with Image.open(tmp_path / "out" / radiographs[0].name) as rebuilt:
        assert done.image_size_px == rebuilt.width == 64
        errors = {
            (top, left): np.square(np.array(rebuilt, dtype=float) - whole[top : top + 64, left : left + 64]).mean()
            for top in range(9)
            for left in range(9)
        }
    assert min(errors, key=lambda place: errors[place]) == (4, 4)


def test_another_decoder_is_refused_by_name_and_nothing_is_written(checkpoint, compressed, tmp_path):
    other = saved_model(tmp_path / "other.safetensors", run="second", nudge=0.01)
    with pytest.raises(CompressedFileError) as refusal:
        decompress_file(compressed, tmp_path / "out", other)
    told = str(refusal.value)
    for named in (checkpoint, other):
        assert decoder_fingerprint(named.build())[:12] in told
    assert "'first', round 2" in told
    assert "'second', round 2" in told
    assert "other.safetensors" in told
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other.json", "other.safetensors"]


def test_the_padding_belongs_to_the_decoder():
    models = [
        build_model(ModelConfig(backbone="resnet18", padding=padding), seed=0, input_size_px=SIZE_PX)
        for padding in ("replicate", "zeros")
    ]
    assert len({decoder_fingerprint(model) for model in models}) == 2


def test_the_fingerprint_is_made_as_the_format_page_says(checkpoint):
    content = b"aecnn decoder, padding replicate\n"
    for name, shape in (("0.bias", "(16,)"), ("0.weight", "(16, 1, 3, 3)")):
        content += f"{name} <f4 {shape}\n".encode() + checkpoint.weights[f"decoder.{name}"].astype("<f4").tobytes()
    assert decoder_fingerprint(checkpoint.build()) == hashlib.sha256(content).hexdigest()


def test_a_file_is_read_as_the_format_page_says(tmp_path):
    values = np.arange(16, dtype=np.uint8).reshape(4, 4)
    (tmp_path / "a.aec").write_bytes(forged([MAGIC, header_bytes(), None, record_bytes(packed=pack(values)), None]))
    header, images = read_all(tmp_path / "a.aec")
    assert (header.image_size_px, header.decoder) == (16, "0" * 64)
    assert images == [("a.png", values.tolist())]


def test_every_flipped_bit_and_every_cut_is_refused(tmp_path):
    sound = small_file(tmp_path / "sound.aec").read_bytes()
    broken = tmp_path / "broken.aec"
    for place in range(len(sound)):
        broken.write_bytes(sound[:place] + bytes([sound[place] ^ (1 << place % 8)]) + sound[place + 1 :])
        with pytest.raises(CompressedFileError, match=r"broken\.aec"):
            read_all(broken)
        broken.write_bytes(sound[:place])
        with pytest.raises(CompressedFileError, match=r"broken\.aec"):
            read_all(broken)


def test_records_that_were_exchanged_do_not_fit(tmp_path):
    header = Header(decoder="0" * 64, origin=ORIGIN, image_size_px=16, num_images=2)
    packed = pack(np.zeros((4, 4), dtype=np.uint8))
    content = small_file(
        tmp_path / "a.aec", header=header, records=[Record("a.png", packed), Record("b.png", packed)]
    ).read_bytes()
    size = len(record_bytes()) + 32
    exchanged = content[: -2 * size] + content[-size:] + content[-2 * size : -size]
    (tmp_path / "b.aec").write_bytes(exchanged)
    with pytest.raises(CompressedFileError, match="does not fit"):
        read_all(tmp_path / "b.aec")


GOOD, BIG = record_bytes(), pack(np.zeros((2048, 2048), dtype=np.uint8))
FAKE = pack(np.zeros((4, 4), dtype=np.uint8))[:-4] + b"fake"
LOSSY = b"RIFF" + struct.pack("<I", 30) + b"WEBPVP8 " + bytes(22)


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        ([b"\x89PNG\r\n\x1a\n" + bytes(60)], "no compressed file of ours"),
        ([], "starts with b''"),
        ([MAGIC, struct.pack("<I", 2**32 - 1), b"{}"], "header has 4294967295 bytes"),
        ([MAGIC, struct.pack("<I", 60_000), b"{}"], "cut short"),
        ([MAGIC, struct.pack("<I", 40_000) + b"[" * 40_000, None], "in its header"),
        ([MAGIC, header_bytes(format_version=2), None, GOOD, None], "format_version in its header"),
        ([MAGIC, header_bytes(packer="lzma", image_size_px=18), None, GOOD, None], "image_size_px in its header"),
        ([MAGIC, header_bytes(image_size_px=10**9), None, GOOD, None], "found 1000000000"),
        ([MAGIC, header_bytes(decoder="../../etc"), None, GOOD, None], "decoder in its header"),
        ([MAGIC, header_bytes(pickle="x"), None, GOOD, None], "pickle in its header"),
        ([MAGIC, header_bytes(num_images=2**32), None, GOOD, None], "holds 4294967296 images"),
        ([MAGIC, header_bytes(), None, GOOD, None, b"more"], "goes on for 4 bytes"),
        ([MAGIC, header_bytes(), None, record_bytes(name_length=65_535), None], "has 65535 bytes"),
        ([MAGIC, header_bytes(), None, record_bytes(length=2**32 - 1), None], "has 4294967295 bytes"),
        ([MAGIC, header_bytes(), None, record_bytes(length=900), None], "cut short"),
        ([MAGIC, header_bytes(), None, record_bytes(b"../../a.png"), None], "no plain name"),
        ([MAGIC, header_bytes(), None, record_bytes(b"C:a.png"), None], "no plain name"),
        ([MAGIC, header_bytes(), None, record_bytes(b"\x1b[2Ja.png"), None], "no plain name"),
        ([MAGIC, header_bytes(), None, record_bytes(b".png"), None], "no plain name"),
        ([MAGIC, header_bytes(), None, record_bytes(b"\xff.png"), None], "no UTF-8"),
        ([MAGIC, header_bytes(num_images=2), None, GOOD, None, record_bytes(b"A.png"), None], "two images named"),
        ([MAGIC, header_bytes(), None, record_bytes(packed=BIG), None], "2048 × 2048 values, expected 4 × 4"),
        ([MAGIC, header_bytes(), None, record_bytes(packed=LOSSY), None], "no lossless WebP"),
        ([MAGIC, header_bytes(), None, record_bytes(packed=FAKE), None], "damaged"),
        ([MAGIC, header_bytes(), None, record_bytes(packed=b"x"), None], "too few for a WebP"),
    ],
)
def test_lies_are_refused_in_a_sentence_and_in_bounded_memory(parts, told, tmp_path):
    path = tmp_path / "hostile.aec"
    path.write_bytes(forged(parts))
    tracemalloc.start()
    try:
        with pytest.raises(CompressedFileError) as refusal:
            read_all(path)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
    assert told in str(refusal.value)
    assert str(path) in str(refusal.value)


def test_images_before_a_damaged_one_are_not_left_behind(checkpoint, tmp_path):
    own = Header(decoder=decoder_fingerprint(checkpoint.build()), origin=ORIGIN, image_size_px=16, num_images=2)
    good = pack(np.zeros((4, 4), dtype=np.uint8))
    small_file(tmp_path / "a.aec", header=own, records=[Record("a.png", good), Record("b.png", good[:-4] + b"fake")])
    done = []
    with pytest.raises(CompressedFileError, match=r"'b\.png' is damaged"):
        decompress_file(tmp_path / "a.aec", tmp_path / "out", checkpoint, on_progress=lambda n, _: done.append(n))
    assert done == [1]
    assert [path.name for path in tmp_path.iterdir()] == ["a.aec"]


def test_all_faults_of_compressing_are_told_at_once_and_leave_nothing(checkpoint, radiographs, tmp_path):
    (tmp_path / "torn.png").write_bytes(radiographs[0].read_bytes()[:-40])
    wanted = [radiographs[0], radiographs[0], tmp_path / "torn.png", tmp_path / "absent.png", tmp_path / ".png"]
    with pytest.raises(CompressedFileError) as refusal:
        compress_files(wanted, tmp_path / "a.png", checkpoint)
    told = str(refusal.value)
    for part in (
        "ends in '.png'",
        "would both become",
        "torn.png: is damaged",
        "absent.png: cannot be read",
        "no plain",
    ):
        assert part in told
    assert [path.name for path in tmp_path.iterdir()] == ["torn.png"]


def test_damage_that_only_decoding_shows_leaves_no_half_file(checkpoint, radiographs, tmp_path):
    with Image.open(radiographs[0]) as picture:
        picture.convert("L").save(tmp_path / "cut.jpg")
    content = (tmp_path / "cut.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(content[: len(content) // 2])
    with pytest.raises(CompressedFileError, match=r"cut\.jpg: is damaged"):
        compress_files([radiographs[0], tmp_path / "cut.jpg"], tmp_path / "a.aec", checkpoint)
    assert [path.name for path in tmp_path.iterdir()] == ["cut.jpg"]


def test_what_is_there_already_is_left_as_it_is(checkpoint, radiographs, compressed, tmp_path):
    (tmp_path / "a.aec").write_text("mine")
    with pytest.raises(CompressedFileError, match="is there already"):
        compress_files(radiographs, tmp_path / "a.aec", checkpoint)
    with pytest.raises(CompressedFileError, match="not empty"):
        decompress_file(compressed, tmp_path, checkpoint)
    (tmp_path / "empty").mkdir()
    decompress_file(compressed, tmp_path / "empty", checkpoint)
    assert (tmp_path / "a.aec").read_text() == "mine"


def test_the_commands_tell_size_and_number(checkpoint, radiographs, tmp_path, capsys):
    aecnn.commands.compression.compress(radiographs, checkpoint.path, tmp_path / "a.aec", json_=True)
    told = json.loads(capsys.readouterr().out)
    assert told["num_bytes"] == (tmp_path / "a.aec").stat().st_size
    assert told["bits_per_pixel"] == pytest.approx(8 * told["num_bytes"] / (5 * SIZE_PX**2))
    aecnn.commands.compression.decompress(tmp_path / "a.aec", checkpoint.path, tmp_path / "out")
    assert "5 image(s)" in capsys.readouterr().out
