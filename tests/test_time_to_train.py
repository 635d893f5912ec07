"""Predicted times, by closed forms."""

import math

import pytest

from batchgrow.plan import FixedPlan, Recipe, decay, grow
from batchgrow.plan.curves import constant, step
from batchgrow.plan.time_to_train import Hardware, allreduce_seconds, fit, predict, table

RESNET50 = 25_557_032  # parameters
PLAN = decay(Recipe(64, 0.9, constant(0.1), num_examples=6400, num_epochs=2))


def test_one_device_only_computes():
    found = predict(PLAN, RESNET50, Hardware(0.01, num_devices=1))
    assert found["seconds"] == pytest.approx(2 * 6400 * 0.01)
    assert found["segments"][0]["allreduce_share"] == 0
    assert found["needed_per_host"] == pytest.approx(100)


def test_ring_all_reduce():
    """Each device sends nearly twice the bytes, and the steps add their latency."""
    assert allreduce_seconds(1e9, 1, 1e9, 1.0) == 0
    assert allreduce_seconds(1e9, 2, 1e9, 0.0) == pytest.approx(1.0)
    assert allreduce_seconds(1e9, 512, 1e9, 0.0) == pytest.approx(2.0, rel=0.01)
    assert allreduce_seconds(0.0, 512, 1e9, 1e-6) == pytest.approx(1022e-6)
    found = predict(PLAN, 250, Hardware(0.01, num_devices=4, bandwidth=1e3, latency=0.5))
    assert found["segments"][0]["update_seconds"] == pytest.approx(0.16 + 1.5 + 3.0)


def test_input_holds_devices_up():
    """Hosts that prepare fewer examples than needed limit the speed, and not the need."""
    fast = Hardware(0.01, num_devices=16, devices_per_host=4, bandwidth=math.inf, latency=0.0)
    found = predict(PLAN, RESNET50, fast)
    assert found["needed_per_host"] == pytest.approx(400)
    assert found["segments"][0]["input_share"] == 0
    slow = Hardware(**vars(fast) | {"input_rate": 100})
    held = predict(PLAN, RESNET50, slow)
    assert held["seconds"] == pytest.approx(4 * found["seconds"])
    assert held["segments"][0]["input_share"] == pytest.approx(0.75)
    assert held["needed_per_host"] == pytest.approx(400)


def test_growing_saves_time_only_where_devices_are_short_of_work_or_grow():
    recipe = Recipe(64, 0.9, step(0.1, (1,), 0.25), num_examples=6400, num_epochs=2)
    growing, free = grow(recipe, max_batch_size=256), {"bandwidth": math.inf, "latency": 0.0}

    def seconds(plan: FixedPlan, **options) -> float:
        return predict(plan, RESNET50, Hardware(0.01, 4, **options))["seconds"]

    assert seconds(growing, **free) == pytest.approx(seconds(decay(recipe), **free))
    assert seconds(growing, latency=0.1) < 0.75 * seconds(decay(recipe), latency=0.1)
    grown = seconds(growing, grow_devices=True, **free)
    assert grown == pytest.approx((1 / 2 + 1 / 2 / 4) * seconds(growing, **free), rel=0.01)
    found = predict(growing, RESNET50, Hardware(0.01, 4, grow_devices=True))
    assert [segment["num_devices"] for segment in found["segments"]] == [4, 16]
    assert found["device_seconds"] == pytest.approx(
        sum(segment["seconds"] * segment["num_devices"] for segment in found["segments"])
    )
    assert table(found).splitlines()[-1].endswith(f"{found['seconds'] / 60:.1f}")


def test_what_makes_no_sense_is_refused():
    recipe = Recipe(64, 0.9, step(0.1, (1,), 2 / 3), num_examples=6400, num_epochs=2)
    with pytest.raises(ValueError, match="not a whole number for 96"):
        predict(grow(recipe), 1, Hardware(0.01, num_devices=3, grow_devices=True))
    for wrong in ({"seconds_per_example": 0.0}, {"num_devices": 0}, {"bandwidth": -1.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Hardware(**{"seconds_per_example": 0.01, "num_devices": 1} | wrong)


def test_growth_on_the_same_devices_saves_the_time_that_every_update_takes():
    """a + b B: with a = 10 ms, updates that are 4 times as large take less than 4 times as long."""
    recipe = Recipe(64, 0.9, step(0.1, (1,), 0.25), num_examples=6400, num_epochs=2)
    a, b = fit((256, 0.138), (64, 0.042))
    assert (a, b) == pytest.approx((0.01, 0.0005))
    hardware = Hardware(b, num_devices=1, seconds_per_update=a)
    decayed = predict(decay(recipe), RESNET50, hardware)["seconds"]
    grown = predict(grow(recipe, max_batch_size=256), RESNET50, hardware)["seconds"]
    assert decayed == pytest.approx(200 * 0.042)
    assert grown == pytest.approx(100 * 0.042 + 25 * 0.138)


def test_fits_that_make_no_sense_are_refused():
    assert fit((10, 1.0), (20, 4.0)) == (0.0, 0.2)  # faster than linear: noise
    with pytest.raises(ValueError, match="the larger batch must take longer"):
        fit((10, 2.0), (20, 2.0))


def test_hops_of_a_torus_and_of_a_tree():
    """With a latency alone: 512 devices in a ring are slower than 256, in a torus hardly."""

    def seconds(n: int, network: str) -> float:
        return allreduce_seconds(0.0, n, 1e9, 1e-6, network)

    assert seconds(512, "ring") == pytest.approx(1022e-6)
    assert seconds(256, "torus2") == pytest.approx(2 * 2 * 15e-6)
    assert seconds(512, "torus3") == pytest.approx(2 * 3 * 7e-6)
    assert seconds(512, "tree") == pytest.approx(2 * 9e-6)
    assert all(seconds(1, network) == 0 for network in ("ring", "torus2", "torus3", "tree"))
    for network in ("torus2", "torus3", "tree"):  # the bytes are the same
        assert allreduce_seconds(1e9, 4, 1e9, 0.0, network) == 1.5
    with pytest.raises(ValueError, match="unknown network 'mesh'"):
        Hardware(0.01, 4, network="mesh")


def test_the_fullest_host_needs_the_most_input():
    """12 devices on hosts of 8: one has 8, and needs two thirds of all examples."""
    free = {"bandwidth": math.inf, "latency": 0.0}
    found = predict(PLAN, RESNET50, Hardware(0.01, 12, devices_per_host=8, **free))
    assert found["needed_per_host"] == pytest.approx(8 / 0.01)
