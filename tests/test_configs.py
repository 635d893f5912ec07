"""Every config and every variant: its plan, and two updates of it in small."""

import importlib
import pathlib

import numpy as np
import pytest

from batchgrow.config import check_layouts, make_experiment, make_plan, make_task
from batchgrow.data.datasets import ArrayDataset
from batchgrow.experiment import Outcome
from batchgrow.train import train

HERE = pathlib.Path(__file__).parent.parent / "configs"
MODULES = {
    path.stem: importlib.import_module(f"configs.{path.stem}")
    for path in sorted(HERE.glob("*.py"))
    if path.stem not in ("__init__", "base")
}
EVERY = [
    (name, variant)
    for name, module in MODULES.items()
    for variant in getattr(module, "VARIANTS", ("",))
]
EVERY += [
    ("cifar10", f"{variant},{size}")
    for size in ("small", "tenth", "short")
    for variant in MODULES["cifar10"].VARIANTS
]
EVERY += [
    ("shakespeare", f"{variant},python_topics") for variant in MODULES["shakespeare"].VARIANTS
]
DOWNLOADED = ("tiny_shakespeare",)  # whose task takes its vocabulary from the text
EMBEDDED = [(name, variant) for name, variant in EVERY if name in ("digits", "diabetes")]
MADE_UP = [("cifar10", "increasing_batch")]  # images of noise
SMALL_MODEL = {
    "conv_net": {"channels": 2},
    "mlp": {"features": (4,)},
    "wide_resnet": {"depth": 10, "width": 1},
}


@pytest.mark.parametrize(("name", "variant"), EVERY)
def test_builds_a_plan_and_a_task(name, variant):
    config = MODULES[name].get_config(variant)
    assert (config.name, config.variant) == (name, variant)
    num_examples = config.data.num_train_examples
    plan = make_plan(config, num_examples)
    check_layouts(plan, 1, config)
    assert plan.num_updates > 10
    epochs = plan.end_examples / num_examples
    assert epochs == pytest.approx(config.recipe.num_epochs, rel=0.01)
    if config.data.name not in DOWNLOADED:
        assert make_task(config).metrics


@pytest.mark.parametrize("variant", MODULES["cifar10"].VARIANTS)
@pytest.mark.parametrize(("size", "part"), [("tenth", 0.1), ("short", 0.25)])
def test_a_shorter_run_has_the_papers_batches_and_a_part_of_its_updates(variant, size, part):
    def plan(size: str):
        return make_plan(MODULES["cifar10"].get_config(variant + size), 50_000)

    whole, shorter = plan(""), plan(f",{size}")
    assert shorter.batch_sizes() == whole.batch_sizes()
    assert shorter.num_updates == pytest.approx(part * whole.num_updates, abs=2)


def noise(split: str) -> ArrayDataset:
    """64 coloured images of noise with labels."""
    rng = np.random.default_rng(split == "train")
    image = rng.integers(0, 256, (64, 32, 32, 3), dtype=np.uint8)
    return ArrayDataset({"image": image, "label": rng.integers(0, 10, 64, dtype=np.int32)})


@pytest.mark.parametrize(
    ("name", "variant"),
    EMBEDDED + [pytest.param(*made_up, marks=pytest.mark.slow) for made_up in MADE_UP],
)
def test_runs_two_updates_in_small(name, variant, tmp_path):
    config = MODULES[name].get_config(variant)
    for field, value in SMALL_MODEL[config.model.name].items():
        config.model[field] = value
    if (name, variant) in MADE_UP:
        config.data.name = "test_configs:noise"
        config.data.num_train_examples = config.data.num_test_examples = 64
        config.ghost_batch_size = config.recipe.batch_size = 4
    num_examples = config.data.num_train_examples
    size = make_plan(config, num_examples).segments[0].batch_size
    config.recipe.num_epochs = 2 * size / num_examples
    config.run.tensorboard = config.run.progress = False
    config.run.num_devices = 1
    config.run.eval_batch_size = 64
    assert train(make_experiment(config), str(tmp_path)) is Outcome.FINISHED
    assert (tmp_path / "summary.json").exists()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [str(2 * size)]


@pytest.mark.parametrize("name", [name for name in MODULES if hasattr(MODULES[name], "VARIANTS")])
def test_unknown_variants_name_the_known(name):
    module = MODULES[name]
    with pytest.raises(ValueError, match=f"unknown variant 'growing'; choose {module.VARIANTS[0]}"):
        module.get_config("growing")


def test_size_of_cifar10_is_checked():
    with pytest.raises(ValueError, match="variant 'hybrid,tiny': after the comma"):
        MODULES["cifar10"].get_config("hybrid,tiny")


def test_a_cosine_that_starts_after_the_end_is_named_by_its_field():
    config = MODULES["shakespeare"].get_config()
    config.recipe.num_epochs = 0.05
    config.recipe.warmup_epochs = 0.01
    with pytest.raises(ValueError, match=r"recipe.decay_start_epochs 0\.07\d* .*num_epochs 0\.05"):
        make_plan(config, 15_685)


def test_only_sequences_have_tokens():
    assert make_plan(MODULES["shakespeare"].get_config(), 15_685).recipe.tokens_per_example == 64
    series = MODULES["series"].get_config()
    for task in ("regression", "batchgrow.tasks.regression:Regression"):
        series.task.name = task
        assert make_plan(series, 5_000).recipe.tokens_per_example is None
