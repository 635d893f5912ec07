"""Ramps: given batch sizes, coupled or not; Megatron-LM's options; WSD."""

import pytest

from batchgrow.config import make_plan
from batchgrow.plan import Recipe, from_megatron, ramp, to_megatron
from batchgrow.plan.curves import constant, step, with_warmup, wsd
from configs import digits

RECIPE = Recipe(64, 0.9, constant(0.1), num_examples=10_000, num_epochs=4)
STAGES = ((0, 16), (8_000, 32), (20_000, 64))


def stages_of(plan) -> list[tuple[int, int]]:
    return [(s.nominal_start_examples, s.batch_size) for s in plan.segments]


def test_a_table_is_followed_and_the_learning_rate_is_the_recipes() -> None:
    plan = ramp(RECIPE, STAGES)
    assert stages_of(plan) == [*STAGES]
    assert {point.learning_rate for point in plan.points()} == {0.1}
    assert plan.end_examples == 40_032  # within half a batch of 4 epochs
    assert [p for point in plan.points() for p in point.positions] == list(range(40_032))


@pytest.mark.parametrize(("optimizer", "exponent"), [("momentum", 1.0), ("adamw", 0.5)])
def test_coupled_to_the_optimizers_own_rule(optimizer: str, exponent: float) -> None:
    """The batch is below the recipe's at first, and the noise is the recipe's throughout."""
    recipe = Recipe(64, 0.9, constant(0.1), 10_000, num_epochs=4, optimizer=optimizer)
    plan = ramp(recipe, STAGES, exponent=None)
    assert plan.exponent == exponent
    found = [plan.at(segment.start_examples) for segment in plan.segments]
    assert [p.learning_rate for p in found] == pytest.approx(
        [0.1 * (b / 64) ** exponent for b in (16, 32, 64)]
    )
    (name,) = found[0].noise
    assert [p.noise[name] for p in found] == pytest.approx([found[-1].noise[name]] * 3)


def test_an_uncoupled_ramp_has_the_noise_that_it_has() -> None:
    """At a constant rate the noise scale falls by 2 with each doubling, and the table says so."""
    plan = ramp(RECIPE, STAGES)
    scales = [plan.at(s.start_examples).noise_scale for s in plan.segments]
    assert scales == pytest.approx([0.1 * 10_000 / (b * 0.1) for b in (16, 32, 64)])


def test_the_batch_may_shrink() -> None:
    plan = ramp(RECIPE, [(0, 64), (10_000, 16), (20_000, 128)])
    assert stages_of(plan) == [(0, 64), (10_000, 16), (20_000, 128)]
    assert plan.batch_sizes() == (64, 16, 128)


def test_jumps_of_the_curve_stay_where_they_are() -> None:
    recipe = Recipe(64, 0.9, step(0.1, (1, 3), 0.1), num_examples=10_000, num_epochs=4)
    plan = ramp(recipe, STAGES)
    assert stages_of(plan) == [(0, 16), (8_000, 32), (10_000, 32), (20_000, 64), (30_000, 64)]
    assert plan.at(plan.segments[2].start_examples).learning_rate == pytest.approx(0.01)


def test_a_curve_of_the_batch_climbs_a_ladder() -> None:
    """Linear from 16 to 144 in 4 epochs: the rungs are where the line reaches them."""
    plan = ramp(RECIPE, lambda epoch: 16 + 32 * epoch)
    assert [s.batch_size for s in plan.segments] == [16, 32, 64, 128]
    starts = [s.nominal_start_examples for s in plan.segments]
    assert starts == pytest.approx([0, 5_000, 15_000, 35_000], abs=1)
    down = ramp(RECIPE, lambda epoch: 128 if epoch < 1 else 32)
    assert stages_of(down) == [(0, 128), (10_000, 32)]


def test_sizes_are_rounded_and_equal_ones_merge() -> None:
    plan = ramp(RECIPE, [(0, 17), (5_000, 15), (10_000, 33)], batch_multiple=16)
    assert stages_of(plan) == [(0, 16), (10_000, 32)]
    assert ramp(RECIPE, [(0, 16), (50_000, 64)]).batch_sizes() == (16,)  # after the end


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "must start at example 0"),
        ([(1, 16)], "must start at example 0"),
        ([(0, 16), (5, 32), (5, 64)], "the stage at 5 must be after that at 5"),
        ([(0, 16), (5, 0)], "stage at 5: batch size=0 must be a whole number"),
        (lambda epoch: 16 - 8 * epoch, "the batch size is .* at epoch 2"),
    ],
)
def test_wrong_tables_are_refused(batches, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ramp(RECIPE, batches)


def test_short_stages_are_warned_of() -> None:
    plan = ramp(RECIPE, [(0, 64), (30_000, 512)])
    assert "20 updates of 512 examples are 2 times" in plan.warnings[0]


def test_stages_without_room_are_warned_of() -> None:
    plan = ramp(RECIPE, [(0, 64), (500, 2000), (1_000, 128), (1_020, 512), (1_030, 128)])
    assert {segment.batch_size for segment in plan.segments} == {64, 128}
    assert plan.warnings[0].startswith("the batch size 2000 from example 500 on has no room for")


def megatrons_rule(start: int, increment: int, samples: int, last: int, consumed: int) -> int:
    """num_microbatches_calculator.py of Megatron-LM, in its own words."""
    if samples == 0 or consumed > samples:
        return last
    per_increment = samples / ((last - start) // increment)
    return min(start + int(consumed / per_increment) * increment, last)


@pytest.mark.parametrize("numbers", [(16, 8, 3000, 40), (32, 32, 9765, 1536), (4, 4, 10, 16)])
def test_rampup_batch_size_is_megatrons(numbers: tuple[int, int, int, int]) -> None:
    start, increment, samples, last = numbers
    stages = from_megatron(f"{start} {increment} {samples}", last)
    for consumed in range(0, samples + 100):
        ours = [size for position, size in stages if position <= consumed][-1]
        assert ours == megatrons_rule(start, increment, samples, last, consumed)
    assert to_megatron(stages) == f"{start} {increment} {samples}"


def test_other_tables_use_megatrons_pairs() -> None:
    stages = ((0, 768), (250_000, 1536), (500_000, 1024))
    assert to_megatron(stages) == "0:768 250K:1536 500K:1024"
    assert from_megatron(to_megatron(stages)) == stages
    assert from_megatron("0:8, 1.5K:16") == ((0, 8), (1500, 16))
    assert from_megatron(to_megatron(((0, 8),))) == ((0, 8),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("16 8", "write 'START INCREMENT SAMPLES'"),
        ("16 x 100", "write 'START INCREMENT SAMPLES'"),
        ("16 7 100", "positive divisor of 64 - 16"),
        ("128 8 100", "positive divisor of 64 - 128"),
        ("5:16", "must start at example 0"),
        ("0:16 inf:32", "'0:16 inf:32'"),
        ("16 8 nan", "'16 8 nan'"),
    ],
)
def test_wrong_texts_are_refused_in_one_line(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        from_megatron(text, 64)
    assert "\n" not in str(error.value)


def test_wsd() -> None:
    curve = wsd(0.4, num_epochs=10, decay_epochs=2, final_learning_rate=0.1)
    assert [curve(epoch) for epoch in (0, 5, 8, 9, 10, 12)] == pytest.approx(
        [0.4, 0.4, 0.4, 0.25, 0.1, 0.1]
    )
    assert with_warmup(curve, 1)(0.5) == pytest.approx(0.2)
    with pytest.raises(ValueError, match="decay_epochs=11 must be above 0 and at most"):
        wsd(0.4, 10, 11)


def test_configs_name_ramps_and_wsd() -> None:
    config = digits.get_config()
    config.ghost_batch_size = None
    config.plan.name = "ramp"
    config.plan.exponent = 0.0
    config.recipe.batch_size = 64
    config.recipe.curve = "wsd"
    config.recipe.decay_epochs = 3.0
    for text in ("16 16 3000", "0:16 1K:32 2K:48 3K:64"):
        config.plan.batches = text
        plan = make_plan(config, 1437)
        assert plan.batch_sizes() == (16, 32, 48, 64)
        assert plan.at(0).learning_rate == 0.2
    assert plan.at(plan.end_examples - 1).learning_rate < 0.01
    config.plan.batches = ""
    with pytest.raises(ValueError, match="^plan.batches '': write .* and T$"):
        make_plan(config, 1437)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (
            "initial_multiple",
            2.0,
            "plan.initial_multiple 2.0: plan.name 'ramp' has its first batch",
        ),
        (
            "max_batch_size",
            48.0,
            "plan.max_batch_size 48 is less than the batch 64 of plan.batches",
        ),
    ],
)
def test_a_ramp_ignores_no_field(field: str, value: float, message: str) -> None:
    config = digits.get_config()
    config.plan.name, config.plan.batches, config.plan.max_batch_size = "ramp", "0:16 1K:64", 64.0
    assert make_plan(config, 1437).batch_sizes() == (16, 64)
    config.plan[field] = value
    with pytest.raises(ValueError, match=message) as error:
        make_plan(config, 1437)
    assert "\n" not in str(error.value)


def test_tokens_are_counted_beside_examples() -> None:
    recipe = Recipe(64, 0.9, constant(0.1), 10_000, num_epochs=4, tokens_per_example=128)
    plan = ramp(recipe, STAGES)
    assert plan.to_dict()["tokens_per_example"] == 128
    assert f"{128 * 8000:,}" in plan.table() and "tokens" in plan.table().splitlines()[0]
    with pytest.raises(ValueError, match="tokens_per_example=0"):
        Recipe(64, 0.9, constant(0.1), 10_000, num_epochs=4, tokens_per_example=0)
