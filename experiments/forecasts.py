"""Record what the compiler says of every variant of configs, for machines that are not here.

    python -m experiments.forecasts --configs=configs/imagenet_resnet50.py \\
        --targets=v2:8x16,v5e:16x16,v6e:16x16

As `experiments.plan --target` for each variant, or for those of --variants. The result for a target
is experiments/results/forecasts/CONFIG_TARGET.json, written after each variant. What was compiled
before is not compiled again, so an interrupted command can be started again.
"""

import json
import pathlib
import re
import runpy
from collections.abc import Sequence
from typing import Any

from absl import flags
from etils import epath

from batchgrow.config import check_layouts, make_plan
from batchgrow.config.data import num_examples_of
from batchgrow.run import environment
from batchgrow.run.files import write_whole
from batchgrow.targets.compile import compiler_versions
from batchgrow.targets.forecast import check_compiler, forecast, table
from batchgrow.targets.machines import Target, parse
from experiments import cli
from experiments.recording import RESULTS

_CONFIGS = flags.DEFINE_list("configs", None, "configs/NAME.py, with VARIANTS.", required=True)
_TARGETS = flags.DEFINE_list("targets", None, "As --target of `experiments.plan`.", required=True)
_VARIANTS = flags.DEFINE_list("variants", [], "Of the config; none for all.")
_MOST = flags.DEFINE_integer(
    "max_microbatch_size", None, "As run.max_microbatch_size; larger layouts are not tried.", 1
)
_OUT = flags.DEFINE_string("out", str(RESULTS / "forecasts"), "Folder of the results.")
_CACHE = flags.DEFINE_string("cache_dir", "", "As of `forecast`; what is there is not compiled.")


def main(_: list[str]) -> int:
    """Records each config on each target; the status is 1 if a batch size does not fit."""
    targets = [parse(name) for name in _TARGETS.value]
    for target in targets:
        check_compiler(target)
    configs = {
        (file, variant): cli.config_of(f"{file}:{variant}")
        for file in _CONFIGS.value
        for variant in _VARIANTS.value or variants_of(file)
    }
    for config in configs.values():
        config.run.max_microbatch_size = _MOST.value or config.run.max_microbatch_size
    fits = True
    for target in targets:
        for (file, variant), config in configs.items():
            found = forecast_of(config, target)
            name = f"{_stem(file)}_{_stem(target.name)}.json"
            write(pathlib.Path(_OUT.value) / name, target, variant, found)
            said = found.get("refused") or table(found)
            print(f"{target.name} {file}:{variant}\n{said}\n", flush=True)
            fits &= not any("error" in x for x in found.get("updates", {}).values())
    return int(not fits)


def variants_of(file: str) -> Sequence[str]:
    """The VARIANTS of a config file.

    Raises:
      ValueError: if there is no such file, or it has none.
    """
    found = runpy.run_path(file).get("VARIANTS") if pathlib.Path(file).is_file() else None
    if found is None:
        raise ValueError(f"--configs={file}: not a file that has VARIANTS; name some by --variants")
    return found


def forecast_of(config: Any, target: Target) -> dict[str, Any]:
    """The forecast of a config, or {"refused"} with the reason if no layout is possible.

    Raises:
      ValueError: for any other reason, such as a slice that the compiler does not know.
    """
    num_examples = num_examples_of(config)
    plan = make_plan(config, num_examples)
    try:
        check_layouts(plan, target.num_devices, config)
    except ValueError as error:
        return {"refused": str(error)}
    return forecast(
        config,
        target,
        num_examples,
        num_processes=1,
        compares=False,
        cache_dir=_CACHE.value,
    )


def write(path: pathlib.Path, target: Target, variant: str, found: dict[str, Any]) -> None:
    """Adds a variant to a file of the same compiler, or begins one."""
    versions = compiler_versions(target)
    whole: dict[str, Any] = {"target": target.name, "versions": versions, "variants": {}}
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        whole = before if before["versions"] == versions else whole
    about = {"commit": environment.commit(), "command": environment.command()}
    known = {k: v for k, v in found.items() if k not in ("target", "versions")}
    for update in known.get("updates", {}).values():
        update.pop("compile_seconds", None)  # of this machine, with whatever else it did
    whole["variants"][variant] = known | about
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(epath.Path(path), f"{json.dumps(whole, indent=1)}\n".encode())


def _stem(name: str) -> str:
    return re.sub(r"\W+", "_", pathlib.PurePath(name).stem)


if __name__ == "__main__":
    cli.run(main)
