"""Another scanner's style: each step against a slow or closed form, and the same image always shifted the same way."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from aecnn.config import DatasetConfig, ScannerConfig
from aecnn.data.cache.build import build_cache
from aecnn.data.cache.read import CachedImages
from aecnn.data.manifest import read_manifest
from aecnn.data.scanner import (
    ShiftedImages,
    grey_curve,
    shifted,
    with_border,
    with_noise,
    with_resolution,
    with_scanner,
)
from aecnn.data.source import FileImages, MemoryImages, load_images

STRONG = ScannerConfig(
    resolution_factor=1.7, gamma=1.3, contrast=0.8, brightness=0.05, noise_std=0.03, noise_seed=5, border_fraction=0.06
)


def _picture(size_px=32, seed=0, low=0, high=256):
    return np.random.default_rng(seed).integers(low, high, (size_px, size_px), dtype=np.uint8)


def test_a_scanner_without_settings_changes_no_byte():
    assert np.array_equal(shifted(_picture(), ScannerConfig(), name="a.png"), _picture())


@settings(deadline=None)
@given(gamma=st.floats(0.25, 4), contrast=st.floats(0.1, 4), brightness=st.floats(-0.5, 0.5))
def test_the_grey_curve_is_the_formula_grey_by_grey(gamma, contrast, brightness):
    curve = grey_curve(gamma=gamma, contrast=contrast, brightness=brightness)
    for grey in range(256):
        wanted = 255 * min(1.0, max(0.0, contrast * ((grey / 255) ** gamma - 0.5) + 0.5 + brightness))
        assert abs(int(curve[grey]) - wanted) <= 0.5 + 1e-9
    assert (np.diff(curve.astype(int)) >= 0).all()


def test_contrast_turns_about_middle_grey_and_brightness_lifts_all():
    for contrast in (0.5, 1.5):
        curve = grey_curve(gamma=1.0, contrast=contrast, brightness=0.0)
        assert int(curve[127]) + int(curve[128]) == 255
        assert abs(int(curve[127]) - 127.5) <= 1
    assert grey_curve(gamma=1.0, contrast=1.0, brightness=0.2)[100] == 151  # 100 + 0.2 · 255
    assert grey_curve(gamma=2.0, contrast=1.0, brightness=0.0)[128] == 64  # 128² / 255 = 64.25


def test_a_resolution_factor_of_two_gives_the_mean_of_each_two_by_two_block():
    pixels = _picture(16)
    coarse = with_resolution(pixels, factor=2.0)
    for top in range(0, 16, 2):
        for left in range(0, 16, 2):
            mean = np.rint(pixels[top : top + 2, left : left + 2].mean())
            assert (coarse[top : top + 2, left : left + 2] == mean).all()


@given(factor=st.floats(1, 16), size_px=st.integers(4, 40))
@settings(deadline=None)
def test_any_resolution_keeps_the_size_and_nearly_the_mean(factor, size_px):
    pixels = _picture(size_px, low=60, high=200)
    coarse = with_resolution(pixels, factor=factor)
    assert coarse.shape == pixels.shape
    assert coarse.dtype == np.uint8
    assert coarse.min() >= pixels.min()
    assert coarse.max() <= pixels.max()
    if size_px % max(1, round(size_px / factor)) == 0:  # whole squares
        assert coarse.mean() == pytest.approx(pixels.mean(), abs=0.51)


def test_noise_has_the_standard_deviation_asked_for_and_keeps_the_mean():
    grey = np.full((256, 256), 128, dtype=np.uint8)
    for std in (0.01, 0.04, 0.1):
        noisy = with_noise(grey, std=std, seed=3).astype(np.float64)
        rounding = 1 / 12  # the variance of rounding to whole greys
        assert noisy.std() == pytest.approx(np.sqrt((255 * std) ** 2 + rounding), rel=0.02)
        assert noisy.mean() == pytest.approx(128, abs=4 * 255 * std / 256)
    neighbours = np.corrcoef(noisy[:, :-1].ravel(), noisy[:, 1:].ravel())[0, 1]
    assert abs(neighbours) < 0.02


def test_the_border_is_black_as_wide_as_asked_and_the_inside_untouched():
    pixels = _picture(100, low=1)
    framed = with_border(pixels, fraction=0.05)
    assert np.array_equal(framed[5:-5, 5:-5], pixels[5:-5, 5:-5])
    framed[5:-5, 5:-5] = 0
    assert not framed.any()
    assert np.array_equal(pixels, _picture(100, low=1))
    assert np.array_equal(with_border(pixels, fraction=0.004), pixels)


def test_noise_follows_from_the_images_name_and_the_scanners_seed():
    one = shifted(_picture(), STRONG, name="a.png")
    assert np.array_equal(one, shifted(_picture(), STRONG, name="a.png"))
    assert not np.array_equal(one, shifted(_picture(), STRONG, name="b.png"))
    assert not np.array_equal(one, shifted(_picture(), STRONG.model_copy(update={"noise_seed": 6}), name="a.png"))


def test_an_image_is_the_same_in_any_batch_in_any_order_and_in_given_room():
    pixels = np.stack([_picture(seed=seed) for seed in range(6)])
    kept = pixels.copy()
    source = ShiftedImages(MemoryImages(pixels), tuple(f"{i}.png" for i in range(6)), STRONG)
    assert (len(source), source.size_px) == (6, 32)
    together = source.read(np.arange(6))
    assert together.shape == (6, 1, 32, 32)
    for row in range(6):
        assert np.array_equal(together[row, 0].numpy(), shifted(kept[row], STRONG, name=f"{row}.png"))
        assert torch.equal(source.read(np.array([row]))[0], together[row])
    turned = np.array([4, 1, 4, 0])
    room = torch.zeros((4, 1, 32, 32), dtype=torch.uint8)
    assert source.read(turned, room) is room
    assert torch.equal(room, together[turned])
    assert np.array_equal(pixels, kept), "reading changed the source"


def test_images_in_memory_from_files_and_from_the_cache_are_shifted_alike(phantom_64px, tmp_path):
    manifest = read_manifest(phantom_64px).select(np.arange(5))
    cached = DatasetConfig(root=phantom_64px, cache_folder=tmp_path)
    build_cache(cached, size_px=512, num_workers=1)
    in_memory = cached.model_copy(update={"use_cache": False})
    from_files = in_memory.model_copy(update={"memory_limit_mb": 1})  # five images of 512 px are over a megabyte
    reads = []
    for dataset, kind in ((in_memory, MemoryImages), (from_files, FileImages), (cached, CachedImages)):
        plain = load_images(manifest, dataset, size_px=512)
        assert isinstance(plain.images, kind)
        loaded = with_scanner(plain, STRONG)
        reads.append(loaded.images.read(np.arange(5)))
        assert torch.equal(loaded.select([3, 1]).images.read(np.array([0, 1])), reads[-1][[3, 1]])
    assert all(torch.equal(read, reads[0]) for read in reads)


@pytest.mark.parametrize(
    "setting",
    [{"gamma": 0.0}, {"contrast": -1.0}, {"noise_std": 0.9}, {"border_fraction": 0.5}, {"resolution_factor": 0.5}],
)
def test_a_setting_out_of_its_bounds_is_refused(setting):
    with pytest.raises(ValidationError):
        ScannerConfig(**setting)
