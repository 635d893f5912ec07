"""Every config and every variant: its plan, and two updates of it in small."""

import importlib
import pathlib

import numpy as np
import pytest
from tiny import MemoryCheckpoints

from batchgrow import open_data
from batchgrow import train as train_module
from batchgrow.config import check, check_layouts, make_schedule
from batchgrow.data.sources import Images
from batchgrow.loop import Outcome

HERE = pathlib.Path(__file__).parent.parent / "configs"
MODULES = {
    path.stem: importlib.import_module(f"configs.{path.stem}")
    for path in sorted(HERE.glob("*.py"))
    if path.stem not in ("__init__", "base")
}
EVERY = [(name, variant) for name, module in MODULES.items() for variant in module.VARIANTS]
EVERY += [("cifar10", f"{variant},small") for variant in MODULES["cifar10"].VARIANTS]
EMBEDDED = [(name, variant) for name, variant in EVERY if name == "digits"]
MADE_UP = [("cifar10", "increasing_batch")]  # images of noise
SMALL_MODEL = {
    "conv_net": {"channels": 2},
    "wide_resnet": {"depth": 10, "width": 1},
}


@pytest.mark.parametrize(("name", "variant"), EVERY)
def test_builds_a_plan(name, variant):
    config = MODULES[name].get_config(variant)
    assert (config.name, config.variant) == (name, variant)
    check(config)
    schedule = make_schedule(config)
    check_layouts(config, schedule, num_devices=1)
    assert schedule.num_updates > 10
    epochs = schedule.end_examples / config.data.num_train_examples
    assert epochs == pytest.approx(config.recipe.num_epochs, rel=0.01)


@pytest.mark.parametrize(
    ("name", "variant"),
    EMBEDDED + [pytest.param(*made_up, marks=pytest.mark.slow) for made_up in MADE_UP],
)
def test_runs_two_updates_in_small(name, variant, tmp_path, monkeypatch):
    config = MODULES[name].get_config(variant)
    for field, value in SMALL_MODEL[config.model.name].items():
        config.model[field] = value
    if name != "digits":
        config.data.num_train_examples = config.data.num_test_examples = 64
        config.ghost_batch_size = config.recipe.global_batch_size = 4
        monkeypatch.setattr(open_data, "load_images", make_up(config))
    size = make_schedule(config).phases[0].batch_size
    config.recipe.num_epochs = 2 * size / config.data.num_train_examples
    config.run.tensorboard = config.run.progress = False
    config.run.num_devices = 1
    config.run.eval_batch_size = 64
    checkpoints = MemoryCheckpoints()
    monkeypatch.setattr(train_module, "Checkpoints", lambda *_, **__: checkpoints)
    assert train_module.train(config, str(tmp_path)) is Outcome.FINISHED
    assert (tmp_path / "summary.json").exists()
    assert list(checkpoints.states) == [2 * size]


def make_up(config):
    """In place of `load_images`: noise of the shape and number that the config says."""
    rng = np.random.default_rng(0)

    def load_images(_, split, data_dir=""):
        count = config.data[f"num_{split}_examples"]
        image = rng.integers(0, 256, (count, *config.data.image_shape), dtype=np.uint8)
        return Images(image, rng.integers(0, config.model.num_classes, count, dtype=np.int32))

    return load_images


@pytest.mark.parametrize("name", MODULES)
def test_unknown_variants_name_the_known(name):
    module = MODULES[name]
    with pytest.raises(ValueError, match=f"variant 'growing' is none of {module.VARIANTS[0]}"):
        module.get_config("growing")


def test_size_of_cifar10_is_checked():
    with pytest.raises(ValueError, match="variant 'hybrid,tiny': after the comma"):
        MODULES["cifar10"].get_config("hybrid,tiny")
