"""Plans in tables and in other trainers' forms."""

import dataclasses
import json

import pytest

from batchgrow import Recipe, curves, decay, grow
from batchgrow.plan import exchange

WRN = Recipe(128, 0.9, curves.step(0.1, (60, 120, 160), 0.2), num_examples=50_000, num_epochs=200)
SMOOTH = Recipe(
    8, 0.9, curves.with_warmup(curves.cosine(0.1, 9), 1), num_examples=997, num_epochs=9
)
PLANS = {
    "step": grow(WRN, max_batch_size=5120),
    "decay": decay(WRN),
    "cosine": grow(SMOOTH, max_batch_size=200),
    "momentum": grow(SMOOTH, momentum=0.95, max_batch_size=64, exponent=0.5),
    "adamw": grow(dataclasses.replace(SMOOTH, optimizer="adamw"), max_batch_size=200),
}


def updates(plan) -> list[tuple]:
    return [(*point[:3], point.batch_size, point.learning_rate, point.momentum) for point in plan]


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("write", [exchange.to_csv, exchange.to_json])
def test_a_table_holds_every_update_exactly(name: str, write) -> None:
    plan = PLANS[name]
    text = write(plan)
    found = exchange.from_text(text)
    assert updates(found.points()) == updates(plan.points())  # Bit for bit.
    assert [p.noise for p in found.points()] == [p.noise for p in plan.points()]
    assert found.end_examples == plan.end_examples == found.recipe.end_examples
    assert [len(found.learning_rates(s)) for s in found.segments] == [
        segment.num_updates for segment in plan.segments
    ]
    assert write(found) == text


def test_a_table_without_an_optimizer_is_for_momentum() -> None:
    """As tables from before the column."""
    content = json.loads(exchange.to_json(PLANS["step"]))
    del content["optimizer"]
    table = exchange.to_csv(PLANS["step"]).replace(",optimizer\n", "\n")
    for text in (json.dumps(content), table.replace(",momentum\n", "\n")):
        found = exchange.from_text(text)
        assert (found.recipe.optimizer, updates(found.points())) == (
            "momentum",
            updates(PLANS["step"].points()),
        )


def test_rows_of_constant_rates_are_short() -> None:
    assert len(exchange.to_csv(PLANS["step"]).splitlines()) == 1 + 4


def test_stages() -> None:
    assert exchange.stages(PLANS["step"])[:2] == ((0, 128), (3_000_064, 640))
    assert exchange.stages(decay(WRN)) == ((0, 128),)  # Its segments have one batch size.


def test_olmo_core() -> None:
    plan = grow(WRN, max_batch_size=3200)
    found = exchange.to_olmo_core(plan, tokens_per_example=2048)
    assert found["batch_sizes"] == [128 * 2048, 640 * 2048, 3200 * 2048]
    assert found["schedule"][1] == {"value": 3_000_064 * 2048, "unit": "tokens"}
    starts = [start["value"] // 2048 for start in found["schedule"]]
    assert list(zip(starts, [128, 640, 3200], strict=True)) == list(exchange.stages(plan))
    with pytest.raises(ValueError, match="by whole factors only, not from 3200 to 5120"):
        exchange.to_olmo_core(PLANS["step"], 2048)


def test_wrong_tables() -> None:
    good = json.loads(exchange.to_json(PLANS["step"]))

    def changed(row: int, **values) -> str:
        rows = [dict(r) for r in good["rows"]]
        rows[row] |= values
        return json.dumps(good | {"rows": rows})

    csv = exchange.to_csv(PLANS["step"])
    cases = [
        (changed(1, start_examples=5), "row 2 starts at example 5, but .* end at 3000064"),
        (changed(1, momentum=0.5), "row 2 has momentum=0.5, but row 1 has 0.9"),
        (changed(3, batch_size=0), "row 4 has num_updates=391 and batch_size=0"),
        (changed(0, batch_size="x"), "not the table of a plan .*invalid literal"),
        (json.dumps(good | {"rows": []}), "the table has no rows"),
        ("{}", "not the table of a plan .'rows' is missing"),
        ("", "the table has no rows"),
        (json.dumps(good | {"num_examples": 0}), "num_examples=0 must be a whole number"),
        (csv.replace("batch_size", "size"), "'batch_size' is missing"),
        (csv.replace(",0.9,50000", ",0.9,50001", 1), "num_examples differs between rows"),
        (csv.replace(",50000,momentum", ",50000,adam", 1), "optimizer differs between rows"),
        (json.dumps(good | {"optimizer": "adamx"}), "unknown optimizer 'adamx'; choose sgd"),
        (json.dumps(good | {"optimizer": "sgd"}), "momentum=0.9: the optimizer 'sgd' has no"),
    ]
    for text, message in cases:
        with pytest.raises(ValueError, match=message) as caught:
            exchange.from_text(text)
        assert "\n" not in str(caught.value)
