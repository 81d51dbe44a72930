"""Fixtures shared by all tests."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from aecnn.config import PhantomConfig
from aecnn.data.phantom import write_phantom

PROJECT = Path(__file__).resolve().parents[1]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where several processes share the tests out by file, the files that take minutes come first.

    A long one that came last would keep one process busy and the others waiting.
    """
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=_rank)


def _rank(item: pytest.Item) -> int:
    if item.path.name.startswith("test_deployed_"):
        return 0
    return 1 if item.get_closest_marker("flower") else 2


@pytest.fixture(scope="session", autouse=True)
def _own_data_home(tmp_path_factory) -> Iterator[None]:
    """Privacy ledgers of hospitals that name no folder of their own lie here, and never in a person's home."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_DATA_HOME", str(tmp_path_factory.mktemp("data-home")))
        yield


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


@pytest.fixture(scope="session")
def complete_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete run folder with its report; tests that change it take `changed_run`."""
    from aecnn.evaluation.report import write_report  # Matplotlib behind it takes a second, in every other test too
    from run_folders_of_tests import write_run

    folder = write_run(tmp_path_factory.mktemp("runs") / "demo-run")
    write_report(folder)
    return folder


@pytest.fixture
def changed_run(complete_run: Path, tmp_path: Path) -> Path:
    """A copy of it to change."""
    return Path(shutil.copytree(complete_run, tmp_path / "run"))
