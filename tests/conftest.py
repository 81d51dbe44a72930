"""Fixtures shared by all tests."""

import os
from pathlib import Path

import pytest

from aecnn.config import PhantomConfig
from aecnn.data.phantom import write_phantom

PROJECT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real NIH radiographs and tables; tests that need it skip where it is absent."""
    folder = Path(os.environ.get("AECNN_TEST_DATA", PROJECT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}: set AECNN_TEST_DATA to a folder of NIH material")
    return folder


@pytest.fixture(scope="session")
def phantom_64px(tmp_path_factory) -> Path:
    """A small phantom dataset, drawn once for all tests; read only."""
    root = tmp_path_factory.mktemp("phantom") / "data"
    config = PhantomConfig(num_patients=48, image_size_px=64, seed=5, preset="demo", num_hospitals=3)
    write_phantom(root, config)
    return root
