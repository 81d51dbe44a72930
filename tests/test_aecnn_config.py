"""YAML files: every shipped one loads, and a faulty one is refused with all its faults."""

import pytest

from aecnn.config import SimulationConfig, dump_config, load_config, locate_config
from aecnn.errors import ConfigError
from aecnn.yaml_text import read_yaml
from conftest import PROJECT

SIMULATIONS = sorted((PROJECT / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", SIMULATIONS, ids=lambda path: path.name)
def test_every_shipped_configuration_loads_and_survives_a_round_trip(path, tmp_path):
    config = load_config(path, SimulationConfig)
    (tmp_path / "again.yaml").write_text(dump_config(config), encoding="utf-8")
    assert load_config(tmp_path / "again.yaml", SimulationConfig) == config


def test_all_faults_are_told_at_once_with_the_nearest_key(tmp_path):
    faulty = (PROJECT / "configs" / "demo.yaml").read_text(encoding="utf-8")
    faulty = faulty.replace("backbone: resnet18", "backbon: resnet18").replace("batch_size: 32", "batch_size: 0")
    (tmp_path / "faulty.yaml").write_text(faulty, encoding="utf-8")
    with pytest.raises(ConfigError) as refused:
        load_config(tmp_path / "faulty.yaml", SimulationConfig)
    text = str(refused.value)
    assert "model.backbon: no such key; did you mean 'backbone'?" in text
    assert "training.batch_size" in text
    assert "found 0" in text
    assert len(refused.value.faults) == 2


def test_overrides_replace_values_and_unknown_ones_are_refused():
    demo = PROJECT / "configs" / "demo.yaml"
    config = load_config(demo, SimulationConfig, overrides=["training.batch_size=5", "model.backbone=resnet18"])
    assert (config.training.batch_size, config.model.backbone) == (5, "resnet18")
    with pytest.raises(ConfigError, match=r"training\.bach_size: no such key; did you mean 'batch_size'"):
        load_config(demo, SimulationConfig, overrides=["training.bach_size=5"])
    with pytest.raises(ConfigError) as refused:
        load_config(demo, SimulationConfig, overrides=["training.batch_size", "seed=3", "name.first=x", "seed=[1"])
    assert refused.value.faults == (
        "training.batch_size: expected key=value, for example training.batch_size=16",
        "name.first=x: 'name' is the value 'demo', it has no keys below it",
        "seed=[1: '[1' is not a YAML value",
    )


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("images.size_px=130", "not divisible by 4"),
        ("images.crop_size_px=256", "larger than size_px"),
        ("model.normalisation=frozen", "weights is 'none'"),
        ("training.local_epochs=2", "exactly one of local_epochs and local_steps"),
        ("partition={by: equal}", "needs num_hospitals"),
        ("partition={by: sizes, sizes: [1, -1]}", "partition.sizes.1: input should be greater than 0"),
        ("partition={by: sizes, sizes: []}", "partition.sizes"),
        ("partition={by: sizes, num_hospitals: 3}", "by: sizes needs sigma (or sizes, one share a hospital)"),
        ("partition={by: sizes, sizes: [1, 2], num_hospitals: 3}", "2 shares for 3 hospitals: make them equal"),
        ("partition={by: sizes, sizes: [1, 2], sigma: 1}", "remove one of the two"),
        ("partition={by: labels}", "by: labels needs num_hospitals and alpha"),
        ("partition={by: view, num_hospitals: 3}", "by: view needs alpha"),
        ("partition={by: equal, num_hospitals: 3, alpha: 1}", "alpha goes with by: labels, view, age, sex"),
        ("partition={by: age, num_hospitals: 3, alpha: 0}", "partition.alpha"),
        ("partition={by: scanner, num_hospitals: 3, sigma: 1}", "sigma goes with by: sizes, and by is 'scanner'"),
        ("partition={by: manifest, num_hospitals: 3}", "num_hospitals goes with by: equal, sizes"),
        ("partition={by: equal, num_hospitals: 3, min_patients: 9, max_patients: 8}", "max_patients 8 is below"),
        ("partition.sizes=[1, 2]", "goes with by: sizes"),
        ("training.learning_rate=.nan", "learning_rate"),
        ("name=../escape", "name"),
        ("training.batch_size=1", "model.normalisation 'batch' needs 2"),
        ("partition={by: equal, num_hospitals: 2}", "the partition makes 2 hospitals"),
    ],
)
def test_contradictions_are_refused(override, told):
    with pytest.raises(ConfigError) as refused:
        load_config(PROJECT / "configs" / "demo.yaml", SimulationConfig, overrides=[override])
    assert told in str(refused.value)


def test_files_that_are_no_configuration_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="looked at"):
        locate_config("absent.yaml")
    for text, told in (("[1, 2", "not valid YAML"), ("- 1", "holds list"), ("", "holds NoneType")):
        (tmp_path / "x.yaml").write_text(text)
        with pytest.raises(ConfigError, match=told):
            load_config(tmp_path / "x.yaml", SimulationConfig)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path, SimulationConfig)


def test_a_key_that_stands_twice_is_refused_and_all_of_them_are_named(tmp_path):
    demo = (PROJECT / "configs" / "demo.yaml").read_text(encoding="utf-8")
    last = len(demo.splitlines())
    (tmp_path / "x.yaml").write_text(
        demo + "name: again\ntraining: {batch_size: 4, learning_rate: 0.1, batch_size: 8}\n"
    )
    with pytest.raises(ConfigError) as refused:
        load_config(tmp_path / "x.yaml", SimulationConfig)
    name, training = (1 + [line.split(":")[0] for line in demo.splitlines()].index(key) for key in ("name", "training"))
    assert set(refused.value.faults) == {
        f"batch_size: stands 2 times in one section (lines {last + 2} and {last + 2}): keep one",
        f"name: stands 2 times in one section (lines {name} and {last + 1}): keep one",
        f"training: stands 2 times in one section (lines {training} and {last + 2}): keep one",
    }


def test_a_section_may_take_over_another_and_change_it(tmp_path):
    (tmp_path / "x.yaml").write_text("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: {y: 2}\n")
    assert read_yaml(tmp_path / "x.yaml") == {"a": {"x": 1, "y": 2}, "b": {"x": 1, "y": 3}, "c": {"y": 2}}


def test_what_a_partition_lacks_and_what_it_does_not_take_are_told_together():
    with pytest.raises(ConfigError) as refused:
        load_config(
            PROJECT / "configs" / "demo.yaml", SimulationConfig, overrides=["partition={by: sex, sigma: 1, sizes: [1]}"]
        )
    for told in ("needs num_hospitals and alpha", "sigma goes with by: sizes", "sizes goes with by: sizes"):
        assert told in str(refused.value)
