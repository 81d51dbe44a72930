"""Suspect radiographs: blank and bordered ones in closed form, the learned checks on real ones they never saw."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from aecnn.data.check.orientation import compose, load_orientation_net, raw_outputs, scale_down, turn
from aecnn.data.check.radiographs import THUMBNAIL_SIDE_PX, inspect
from aecnn.data.images import decode_radiograph
from aecnn.data.manifest import read_manifest
from aecnn.data.split import in_validation
from aecnn.errors import CheckpointError

SIDE = THUMBNAIL_SIDE_PX
NUM_IMAGES = 96


def suspicions(pictures, ratio=1.0):
    return inspect(pictures, np.full(len(pictures), ratio))


def rows_of(pictures, kind, start=""):
    return {found.row for found in suspicions(pictures) if found.kind == kind and found.sentence.startswith(start)}


def busy(height=SIDE, width=SIDE):
    """A picture with contrast everywhere, down to its last lines."""
    rows, columns = np.mgrid[:height, :width]
    return (128 + 100 * np.sin(rows / 9) * np.cos(columns / 7)).astype(np.uint8)


@pytest.fixture(scope="module")
def radiographs(real_data):
    """Real radiographs of patients whose images had no part in weights and thresholds (see benchmarks)."""
    manifest = read_manifest(real_data / "nih_256px")
    patients = manifest.table["patient"].tolist()
    manifest = manifest.select(in_validation(patients, fraction=0.4, key="radiograph checks"))
    manifest = manifest.select(np.arange(NUM_IMAGES) * (len(manifest) // NUM_IMAGES))
    return np.stack([decode_radiograph(Path(path), size_px=SIDE) for path in manifest.table["path"]])


@pytest.fixture(scope="module")
def phantoms(phantom_64px):
    table = read_manifest(phantom_64px).table[::2]
    return np.stack([decode_radiograph(Path(path), size_px=SIDE) for path in table["path"]])


@pytest.mark.parametrize("level", [0, 1, 77, 200, 255])
def test_a_picture_of_one_grey_value_is_blank_and_nothing_else(level):
    (found,) = suspicions(np.full((1, SIDE, SIDE), level, dtype=np.uint8))
    assert (found.row, found.kind) == (0, "blank")
    assert found.sureness == 1.0
    assert found.sentence.startswith("almost blank: ")


def test_noise_does_not_hide_a_blank_picture():
    noise = np.random.default_rng(0).normal(120, 20, (1, SIDE, SIDE)).clip(0, 255).astype(np.uint8)
    assert [found.kind for found in suspicions(noise)] == ["blank"]


@pytest.mark.parametrize(("level", "name"), [(0, "black"), (255, "white")])
def test_a_saturated_picture_states_the_share_of_its_saturated_pixels(level, name):
    picture = np.full((SIDE, SIDE), level, dtype=np.uint8)
    picture[:64, :64] = 128  # one sixteenth
    (found,) = suspicions(picture[None])
    assert found.kind == "blank"
    assert found.sureness == 15 / 16
    assert f"94% of its pixels are {name}" in found.sentence


@pytest.mark.parametrize("level", [0, 130, 255])
def test_a_frame_is_a_border_of_the_stated_width(level):
    picture = np.full((SIDE, SIDE), level, dtype=np.uint8)
    picture[33:-16, 64:-8] = busy(SIDE - 49, SIDE - 72)
    (found,) = [found for found in suspicions(picture[None]) if found.kind == "borders"]
    assert "(top 13%, bottom 6%, left 25%, right 3%)" in found.sentence
    assert found.sureness >= 0.98


def test_a_picture_without_bands_and_one_with_a_narrow_band_have_no_border():
    one_band = busy()
    one_band[:20] = 0
    assert not rows_of(np.stack([busy(), one_band]), "borders")


@pytest.mark.parametrize("ratio", [0.5, 2 / 3, 1.5, 2.0])
def test_the_letterbox_of_a_picture_that_is_not_square_is_no_border(ratio):
    picture = np.zeros((SIDE, SIDE), dtype=np.uint8)
    start = (SIDE - round(SIDE * min(ratio, 1 / ratio))) // 2
    window = (slice(None), slice(start, SIDE - start)) if ratio < 1 else (slice(start, SIDE - start), slice(None))
    picture[window] = busy()[window]
    assert not [found for found in suspicions(picture[None], ratio=ratio) if found.kind == "borders"]
    assert [found for found in suspicions(picture[None]) if found.kind == "borders"]


def test_a_blank_picture_within_a_letterbox_is_blank():
    picture = np.zeros((1, SIDE, SIDE), dtype=np.uint8)
    picture[:, :, 64:-64] = 100
    assert [found.kind for found in suspicions(picture, ratio=0.5)] == ["blank"]


def test_phantoms_are_no_suspects_until_they_are_spoiled(phantoms):
    assert len({found.row for found in suspicions(phantoms)}) <= 0.05 * len(phantoms)
    assert len(rows_of(255 - phantoms, "inverted")) >= 0.95 * len(phantoms)
    for quarter, says in ((1, "turned by 90° anti"), (2, "turned by 180°"), (3, "turned by 90° clock")):
        turned = np.rot90(phantoms, quarter, axes=(1, 2))
        assert len(rows_of(turned, "turned", says)) >= 0.9 * len(phantoms)


def test_few_sound_radiographs_are_suspects(radiographs):
    found = suspicions(radiographs)
    assert len({item.row for item in found}) <= 4, found
    assert all(0.0 <= item.sureness <= 1.0 for item in found)


def test_negatives_are_found(radiographs):
    found = suspicions(255 - radiographs)
    inverted = {item.row for item in found if item.kind == "inverted"}
    assert len(inverted) >= NUM_IMAGES - 3
    assert all(0.0 <= item.sureness <= 1.0 for item in found)


@pytest.mark.parametrize(
    ("orientation", "says"),
    [
        (1, "turned by 90° anticlockwise: turn it by 90° clockwise"),
        (2, "turned by 180°: turn it by 180°"),
        (3, "turned by 90° clockwise: turn it by 90° anticlockwise"),
    ],
)
def test_turned_radiographs_are_found_and_the_turn_is_named(radiographs, orientation, says):
    turned = np.rot90(radiographs, orientation, axes=(1, 2))
    assert len(rows_of(turned, "turned")) >= NUM_IMAGES - 3
    assert len(rows_of(turned, "turned", says)) >= NUM_IMAGES - 10


@pytest.mark.parametrize(
    ("flip", "says"),
    [
        (lambda pictures: pictures.transpose(0, 2, 1), "flipped over the diagonal from top left"),
        (lambda pictures: pictures[:, ::-1, ::-1].transpose(0, 2, 1), "flipped over the diagonal from top right"),
        (lambda pictures: pictures[:, ::-1], "flipped upside down"),
    ],
)
def test_flipped_radiographs_are_found_and_mostly_named(radiographs, flip, says):
    assert len(rows_of(flip(radiographs), "turned")) >= NUM_IMAGES - 3
    assert len(rows_of(flip(radiographs), "turned", says)) >= 0.7 * NUM_IMAGES


def test_what_is_found_does_not_depend_on_order_and_batch(radiographs):
    some = np.concatenate([radiographs[:6], 255 - radiographs[6:12], np.rot90(radiographs[12:18], axes=(1, 2))])
    some = np.concatenate([some, np.zeros_like(some[:1])])
    together = {(found.row, found.kind, found.sentence): found.sureness for found in suspicions(some)}
    backwards = {(len(some) - 1 - f.row, f.kind, f.sentence): f.sureness for f in suspicions(some[::-1])}
    alone = {(row, f.kind, f.sentence): f.sureness for row in range(len(some)) for f in suspicions(some[row : row + 1])}
    assert together == pytest.approx(backwards, abs=1e-4)
    assert together == pytest.approx(alone, abs=1e-4)
    assert [found.row for found in suspicions(some)] == sorted(found.row for found in suspicions(some))


def test_composing_orientations_is_turning_twice():
    picture = torch.arange(9).reshape(3, 3)
    for outer in range(8):
        for inner in range(8):
            assert torch.equal(turn(turn(picture, inner), outer), turn(picture, compose(outer, inner)))


def test_the_reading_of_a_turned_picture_is_the_turned_reading():
    net, _ = load_orientation_net()
    images = scale_down(np.stack([busy(), busy().T // 2]))
    upright, _ = raw_outputs(net, images)
    for way in range(8):
        turned, _ = raw_outputs(net, turn(images, way))
        np.testing.assert_allclose(turned[:, [compose(way, k) for k in range(8)]], upright, atol=1e-4, rtol=1e-4)


def test_a_missing_or_damaged_weights_file_is_a_sentence(tmp_path):
    with pytest.raises(CheckpointError, match="is missing: install the package again"):
        load_orientation_net(tmp_path / "none.safetensors")
    (tmp_path / "damaged.safetensors").write_bytes(b"no weights")
    with pytest.raises(CheckpointError, match="is not the weights file of this version"):
        load_orientation_net(tmp_path / "damaged.safetensors")


def test_importing_the_checks_does_not_import_torch():
    code = "import sys, aecnn.data.check.radiographs; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_nothing_is_said_of_no_pictures():
    assert inspect(np.empty((0, SIDE, SIDE), dtype=np.uint8), np.empty(0)) == []
