"""Step 4 of `experiments.culturespa`: all adapters of all seeds, side by side in two programs.

    OUT/training/shared/, specific/          checkpoints; a killed run goes on from the last
                /shared.jsonl, specific.jsonl   loss, gradient and learning rate of each step
    OUT/seed0/adapters/joint, cct, rds, cds, specific-USA, ...   for PEFT

`shared` are the models of all countries, `specific` one of each country. A country without a
single selected pair has no specific model and keeps the model as it was.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from jaxalign.core.files import MetricsFile
from jaxalign.lm.lora import AdapterWeights
from jaxalign.lm.peft import load_lora, save_lora
from jaxalign.lm.weights import Params
from jaxalign.methods.culturespa.settings import Config
from jaxalign.methods.culturespa.step_write import seed_folder
from jaxalign.methods.culturespa.study import Study
from jaxalign.runs import Run
from jaxalign.runs.checkpoints import Checkpoints
from jaxalign.runs.console import progress_bars
from jaxalign.training.packing import Example
from jaxalign.training.trainer import HeldOutLoss, Trainer, adapters, fit

Name = tuple[int, str]  # seed and method


def tune(
    config: Config,
    study: Study,
    params: Params,
    run: Run,
    group: str,
    examples: Mapping[Name, Sequence[Example]],
) -> dict[Name, AdapterWeights]:
    """Adapters trained on `examples`, from OUT where they are already there. `group` names the
    folder of checkpoints; "specific" models take `--specific-batch` examples a step."""
    wanted = {name: some for name, some in examples.items() if some}
    folders = {(seed, m): seed_folder(run.out, seed) / "adapters" / m for seed, m in wanted}
    if not wanted:
        return {}
    if not all((folder / "adapter_config.json").exists() for folder in folders.values()):
        found = train(config, study, params, run, group, wanted)
        for name, folder in folders.items():
            if run.writes:
                save_lora(folder, found[name], study.llama, config.lora, str(study.folder))
    return {name: load_lora(folder, study.llama)[1] for name, folder in folders.items()}


def train(
    config: Config,
    study: Study,
    params: Params,
    run: Run,
    group: str,
    examples: Mapping[Name, Sequence[Example]],
    rates: Mapping[Name, float] | None = None,
    held_out: Mapping[Name, Sequence[Example]] | None = None,
) -> dict[Name, AdapterWeights]:
    """All at once, from the last checkpoint. With `rates`, the learning rates of models that differ
    in nothing else, they start alike and see their examples in one order, seed by seed; `held_out`
    are examples whose loss is logged beside that of those trained on."""
    batch = config.specific_batch if group == "specific" else config.train.batch
    settings = dataclasses.replace(config.train, batch=batch)
    drawn_as = {name: label((name[0], group)) for name in rates or {}}
    trainer = Trainer(
        study.llama, settings, config.lora, _labelled(examples), study.mesh,
        _labelled(rates or {}), _labelled(drawn_as),
    )  # fmt: skip
    (run.out / "training").mkdir(exist_ok=True)
    log = MetricsFile(run.out / "training" / f"{group}.jsonl", "step")
    with (
        Checkpoints(run.out / "training" / group) as saved,
        progress_bars(config.quiet) as on_progress,
    ):
        state = fit(
            trainer, params, saved, config.save_every,
            begin=(lambda step: log.rewind(step or -1)) if run.writes else (lambda step: None),
            log=log.append if run.writes else (lambda row: None),
            held_out=HeldOutLoss(trainer, _labelled(held_out)) if held_out else None,
            on_progress=on_progress,
        )  # fmt: skip
    found = adapters(trainer, state)
    return {name: found[label(name)] for name in examples}


def _labelled(values: Mapping[Name, Any]) -> dict[str, Any]:
    return {label(name): value for name, value in values.items()}


def label(name: Name) -> str:
    """What `training/*.jsonl` calls an adapter."""
    seed, method = name
    return f"seed{seed} {method}"
