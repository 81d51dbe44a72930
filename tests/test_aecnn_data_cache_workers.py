"""The processes that decode: what goes wrong in one of them is told as what it is."""

import pytest

from aecnn.data.cache.workers import work_off
from aecnn.errors import CacheError, ManifestError
from aecnn.progress import OnImages


def fail(task: str, on_images: OnImages) -> str:
    if task == "value":
        raise ValueError("a number too far")
    raise ManifestError("labels.csv", [task])  # cannot be pickled and read again


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "kind", "text"),
    [("value", ValueError, "^a number too far"), ("table", CacheError, r"ManifestError: labels\.csv: 1 fault")],
)
def test_an_error_in_a_worker_is_raised_as_it_is_where_it_can_travel(
    task: str, kind: type[Exception], text: str
) -> None:
    with pytest.raises(kind, match=text) as caught:
        list(work_off([task, task], fail, num_workers=2, on_images=lambda _: None))
    if kind is ValueError:
        assert "in fail" in "".join(caught.value.__notes__)
