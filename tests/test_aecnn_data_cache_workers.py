"""The processes that decode: what goes wrong in one of them is told as what it is."""

import pytest

from aecnn.data.cache.workers import work_off
from aecnn.errors import CacheError, ManifestError
from aecnn.progress import OnImages


def fail(task: str, on_images: OnImages) -> str:
    if task == "disk":
        raise OSError(28, "No space left on device")
    if task == "value":
        raise ValueError("a number too far")
    raise ManifestError("labels.csv", [task])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "kind", "told"),
    [
        ("disk", OSError, "No space left"),
        ("value", CacheError, "failed: ValueError: a number too far"),
        ("table", CacheError, r"failed: ManifestError: labels\.csv: 1 fault"),
    ],
)
def test_an_error_in_a_worker_reaches_the_parent(task: str, kind: type[Exception], told: str) -> None:
    with pytest.raises(kind, match=told) as caught:
        list(work_off([task, task], fail, num_workers=2, on_images=lambda _: None))
    if kind is CacheError:
        assert "in fail" in "".join(caught.value.__notes__)  # the worker's own traceback
