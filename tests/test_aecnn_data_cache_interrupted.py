"""The building of a cache, killed or interrupted at any moment: the next run goes on, and the end is the same."""

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from aecnn.config import DatasetConfig
from aecnn.data.cache.build import build_cache
from aecnn.data.cache.lookup import read_shards
from aecnn.data.cache.verify import verify_cache
from test_aecnn_data_cache import files_of, name_of, write_image, write_table

SIZE_PX = 400
NUM_IMAGES = 240  # eight shards of noise, slow to decode

BUILDER = """
import sys
from pathlib import Path
from aecnn.config import DatasetConfig
from aecnn.data.cache.build import build_cache

assert "torch" not in sys.modules
if __name__ == "__main__":
    dataset = DatasetConfig(root=Path(sys.argv[1]), cache_folder=Path(sys.argv[2]))
    build_cache(dataset, size_px=int(sys.argv[3]), num_workers=2, on_progress=lambda done, _: print(done, flush=True))
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("interrupted") / "data"
    (root / "images").mkdir(parents=True)
    for number in range(NUM_IMAGES):
        write_image(root / "images" / name_of(number), seed=number, size_px=SIZE_PX)
    write_table(root, range(NUM_IMAGES))
    return root


def content_of(root: Path, cache: Path) -> dict[str, bytes]:
    """The pixels by image."""
    shards, faults = read_shards(cache / f"{SIZE_PX}px", size_px=SIZE_PX)
    assert faults == []
    found = [
        (entry.image, pixels.tobytes())
        for shard in shards
        for entry, pixels in zip(shard.entries, np.load(shard.pixels_file), strict=True)
    ]
    assert len(dict(found)) == len(found) == NUM_IMAGES
    return dict(found)


def start(root: Path, cache: Path) -> subprocess.Popen[str]:
    script = root.parent / "builder.py"
    script.write_text(BUILDER)
    return subprocess.Popen(
        [sys.executable, str(script), str(root), str(cache), str(SIZE_PX)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )


def stop(builder: subprocess.Popen[str], *, after_images: int, how: signal.Signals) -> None:
    """Stops a builder after some images; Ctrl-C goes to all its processes, a kill to itself alone."""
    assert builder.stdout is not None
    with builder.stdout:
        for line in builder.stdout:
            if int(line) >= after_images:
                break
    (os.killpg if how == signal.SIGINT else os.kill)(builder.pid, how)
    builder.wait(timeout=60)


def await_end_of_group(group: int) -> None:
    deadline = time.monotonic() + 60
    with suppress(ProcessLookupError):
        while time.monotonic() < deadline:
            os.killpg(group, 0)
            time.sleep(0.05)
        pytest.fail("processes that decode outlive the one that started them")


@pytest.mark.slow
@pytest.mark.parametrize(("how", "stages"), [(signal.SIGKILL, (0.1, 0.5)), (signal.SIGINT, (0.4,))])
def test_a_store_built_in_many_interrupted_runs_equals_one_built_at_once(
    root: Path, tmp_path: Path, how: signal.Signals, stages: tuple[float, ...]
) -> None:
    build_cache(DatasetConfig(root=root, cache_folder=tmp_path / "whole"), size_px=SIZE_PX, num_workers=1)
    moments = random.Random(how)
    dataset = DatasetConfig(root=root, cache_folder=tmp_path / "pieces")
    for stage in stages:
        builder = start(root, tmp_path / "pieces")
        stop(builder, after_images=int((stage + moments.uniform(0, 0.3)) * NUM_IMAGES), how=how)
        await_end_of_group(builder.pid)
        if how == signal.SIGINT:
            assert not [name for name in files_of(tmp_path / "pieces") if ".partial" in name]
    builder = start(root, tmp_path / "pieces")  # killed, and at once
    os.kill(builder.pid, signal.SIGKILL)
    stop(builder, after_images=0, how=signal.SIGKILL)
    report = build_cache(dataset, size_px=SIZE_PX, num_workers=1)
    assert report.num_kept > 0
    assert report.num_kept + report.num_decoded == NUM_IMAGES
    assert content_of(root, tmp_path / "pieces") == content_of(root, tmp_path / "whole")
    names = set(os.listdir(tmp_path / "pieces" / f"{SIZE_PX}px")) - {"cache.json"}
    assert {name[-4:] for name in names} == {".npy", ".csv"}
    assert len({name[:-4] for name in names}) * 2 == len(names)
    assert verify_cache(dataset, size_px=SIZE_PX, num_workers=1) == []
