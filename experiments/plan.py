"""What a config would do: its phases, before anything is trained and with no device touched.

python -m experiments.plan --config=configs/digits.py:increasing_batch --num_devices=4
"""

import json

from absl import flags

from batchgrow.config import check, check_layouts, make_schedule
from experiments import cli

_CONFIG = cli.config_flag()
_NUM_DEVICES = flags.DEFINE_integer("num_devices", 1, "Devices of all hosts together.")
_JSON = flags.DEFINE_bool("json", False, "Print JSON instead of a table.")


def main() -> int:
    """Prints the plan."""
    config, num_devices = _CONFIG.value, _NUM_DEVICES.value
    check(config)
    schedule = make_schedule(config)
    check_layouts(config, schedule, num_devices)
    if _JSON.value:
        print(json.dumps(schedule.to_dict(num_devices=num_devices), indent=2))
        return 0
    print(schedule.table(num_devices=num_devices))
    longest = max(schedule.at(p.start_examples).accumulation_epochs for p in schedule.phases)
    print(
        f"\nnoise scale: learning_rate N / (B (1 - momentum)); the form with (N/B - 1) is lower by "
        f"B/N.\nMomentum forgets old gradients over B / (N (1 - momentum)) <= {longest:.2g} epochs."
    )
    return 0


if __name__ == "__main__":
    cli.run(main)
