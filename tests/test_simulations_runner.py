"""What is looked at before a run begins, and that nothing is made before it is found in order."""

import shutil

import pytest

from aecnn.errors import FederationError, ManifestError, ModelError
from federation_in_process import small_config
from simulations.runner import prepare_run


def test_an_input_too_small_for_the_backbone_is_refused_first(phantom_64px, tmp_path):
    config = small_config(phantom_64px, model={"backbone": "densenet121"})
    with pytest.raises(ModelError, match="64 px is too small for densenet121"):
        prepare_run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_dataset_without_a_test_split_is_refused_before_training(phantom_64px, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(phantom_64px, root)
    for name in ("test_list.txt", "train_val_list.txt"):
        (root / name).unlink()
    with pytest.raises(ManifestError, match="no test split"):
        prepare_run(small_config(root), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_every_unreadable_image_is_named_before_training_those_of_the_test_split_too(phantom_64px, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(phantom_64px, root)
    broken = [sorted((root / name).read_text().split())[0] for name in ("test_list.txt", "train_val_list.txt")]
    for image in broken:
        (root / "images" / image).write_bytes(b"no picture")
    with pytest.raises(ManifestError) as refused:
        prepare_run(small_config(root), tmp_path / "run")
    assert all(image in str(refused.value) for image in broken)
    assert len(refused.value.faults) == 2
    prepare_run(small_config(root, data={"root": str(root), "on_unreadable": "skip"}), tmp_path / "skipping")


def test_a_folder_in_use_or_one_that_cannot_be_made_is_refused(phantom_64px, tmp_path):
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "thesis.tex").write_text("years of work")
    with pytest.raises(FederationError, match="holds something already"):
        prepare_run(small_config(phantom_64px), tmp_path / "used")
    with pytest.raises(FederationError, match="cannot be made"):
        prepare_run(small_config(phantom_64px), tmp_path / "used" / "thesis.tex" / "run")
    assert (tmp_path / "used" / "thesis.tex").read_text() == "years of work"


def test_too_few_hospitals_leave_nothing_behind(phantom_64px, tmp_path):
    config = small_config(
        phantom_64px, partition={"by": "manifest", "num_hospitals": None}, federation={"min_hospitals": 9}
    )
    with pytest.raises(FederationError, match=r"3 hospitals, and federation\.min_hospitals is 9"):
        prepare_run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
