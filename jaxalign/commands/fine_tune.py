"""Fine-tune a Llama on conversations of your own: supervised, on the last reply of each.

    jaxalign fine-tune --data conversations.jsonl --out runs/tuned       # the pocket Llama
    jaxalign fine-tune --data conversations.jsonl --out runs/tuned-8b \\
        --model /path/to/Meta-Llama-3-8B-Instruct

Every line of the file is {"messages": [{"role": "user", "content": "..."}, ..., {"role":
"assistant", "content": "..."}]}. The loss counts the last message alone, including its end of turn.
OUT/loss.png shows it over the steps, and with --held-out-share also the loss on questions that are
not trained on. The result is a PEFT adapter in OUT/adapter, and with --merge or --train.method full
a whole model in OUT/model that transformers reads. A killed run continues with --resume and ends
with the same bits, on the same number of devices. The pocket Llama takes seconds to minutes on a
CPU; an 8B model needs a GPU or TPU. Examples are spread over --data-parallel devices and weights
over --model-parallel devices.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import shutil
from pathlib import Path
from typing import Any, Literal

import jax

from jaxalign.core.errors import UserError
from jaxalign.lm.checkpoint import save_checkpoint
from jaxalign.lm.lora import Adapter, LoraConfig
from jaxalign.lm.mesh import device_mesh
from jaxalign.lm.model import LM, load_model, open_model
from jaxalign.report.figures import save_training_losses
from jaxalign.runs import Run, check_run, identity_of, may_change, recorded_facts, with_flags
from jaxalign.runs.checkpoints import Checkpoints, checkpoint_bytes
from jaxalign.runs.console import progress_bars
from jaxalign.runs.tracking import TrackerName
from jaxalign.training.conversations import hold_out, read_conversations
from jaxalign.training.defaults import resolve_training, training_sources
from jaxalign.training.fine_tune import JOINT, merged_model, trained_adapters, trained_model
from jaxalign.training.step import Trained
from jaxalign.training.trainer import HeldOutLoss, TrainConfig, Trainer, fit

_CHECKPOINTS = "checkpoints"  # in the run's directory
# Files of a model folder that say how the model is spoken to.
_COMPANIONS = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template*",
    "generation_config.json",
)


@dataclasses.dataclass(frozen=True)
class Config:
    """Fine-tune a Llama on the last reply of conversations."""

    data: Path
    """File of JSON lines, each {"messages": [...]} that ends with the assistant."""
    out: Path = may_change(dataclasses.MISSING)
    """Directory of the run."""
    resume: bool = may_change(False)
    """Continue the run in --out; it ends with the same bits as one that was never stopped (on
    another number of devices: the same up to rounding)."""
    model: str | None = None
    """Model: a Hugging Face folder, a GGUF file of a Llama, a hub id such as
    meta-llama/Meta-Llama-3-8B-Instruct, or smollm2; default: the pocket model that ships with the
    package."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Dtype of weights and activations; auto: float32 for the pocket Llama, bfloat16 for others.
    What is trained is always float32."""
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    lora: LoraConfig = dataclasses.field(default_factory=LoraConfig)
    longest: int = 2048
    """Longest conversation, in tokens; longer ones are left out and counted. Never more than the
    model can read."""
    limit: int | None = None
    """For a quick look: read no more than this number of conversations."""
    held_out_share: float = 0.0
    """Share of the distinct questions that are not trained on. The loss on them is measured before
    training and ten times on the way; where it rises, the model memorises its examples."""
    data_parallel: int | None = may_change(None)
    """Devices that examples are spread over; default: all that --model-parallel leaves."""
    model_parallel: int | None = may_change(None)
    """Devices that share one copy of the weights; default: as few as memory allows."""
    save_every: int = may_change(100)
    """Steps between checkpoints."""
    merge: bool = may_change(False)
    """Also write the whole model with the adapter merged into it."""
    track: TrackerName | None = may_change(None)
    """Where the rows of metrics are sent too, as they are written: wandb (Weights & Biases, which
    follows its own variables, such as WANDB_MODE=offline and WANDB_PROJECT) or tensorboard (events
    in the run's directory). Each needs the extra of its name: pip install 'jaxalign[wandb]'."""
    quiet: bool = may_change(False)
    """Show no progress bar."""
    verbose: bool = may_change(False)
    """Whether to show plans, meshes, kernels and memory too; the run's notes.log has them."""

    def __post_init__(self) -> None:
        for name in ("longest", "save_every"):
            if getattr(self, name) < 1:
                raise UserError(f"`{name}` {getattr(self, name)}: must be at least 1")
        if self.limit is not None and self.limit < 1:
            raise UserError(f"`limit` {self.limit}: must be at least 1")
        if not 0 <= self.held_out_share < 1:
            raise UserError(f"`held_out_share` {self.held_out_share}: must be in [0, 1)")


def tune(config: Config) -> None:
    """Run the command: read, train, write adapter, model and picture."""
    recorded = recorded_facts(config.out, config.resume)
    files = open_model(config.model, config.dtype, revision=recorded.get("model_revision"))
    train, notes = resolve_training(config.train, files)
    config = dataclasses.replace(config, train=train)
    check_run(config.out, config, config.resume)
    for note in notes:
        print(with_flags(note, Config))
    longest = min(config.longest, files.config.max_position_embeddings)
    conversations, left_out = read_conversations(config.data, files.tokenizer, longest)
    print(f"{len(conversations)} conversations, {left_out} left out for more than {longest} tokens")
    if config.limit is not None:
        conversations = conversations[: config.limit]
        print(f"a quick look: the first {len(conversations)} of them are used (--limit)")
    examples, held_out = hold_out(conversations, config.held_out_share, config.train.seed)
    if held_out:
        print(f"{len(held_out)} of them are held out")
    mesh, choice = device_mesh(
        files.config,
        None,
        model_parallel=config.model_parallel,
        data_parallel=config.data_parallel,
    )
    print(choice.describe())
    # The step is compiled before the weights are read, so that one that does not fit fails early.
    trainer = Trainer(
        files.config,
        config.train,
        config.lora,
        {JOINT: examples},
        mesh,
        checkpoints=config.out / _CHECKPOINTS,
    )
    held_out_loss = HeldOutLoss(trainer, {JOINT: held_out}) if held_out else None
    print(trainer.describe())
    facts = {
        **files.facts(),
        "data_sha256": hashlib.sha256(config.data.read_bytes()).hexdigest(),
        "examples": len(examples),
        "held_out": len(held_out),
        "left_out": left_out,
    }
    lm = load_model(files, mesh=mesh)
    writes_bytes = checkpoint_bytes(trainer.abstract_state)
    if config.merge or config.train.method == "full":
        writes_bytes += checkpoint_bytes(lm.params, keep=0)
    with Run.create(
        config.out,
        config,
        facts,
        config.resume,
        step="step",
        writes_bytes=writes_bytes,
        sources=training_sources(config, files),
    ) as open_run:
        for note in open_run.notes:
            print(note)
        trained = _train(config, open_run, trainer, lm, held_out_loss)
        adapter, model = _results(config, trainer, lm, trained)
        if open_run.writes:
            _save(config, adapter, model)
            _show_losses(open_run)
    print(f"everything is in {config.out}")


def _train(
    config: Config, open_run: Run, trainer: Trainer, lm: LM, held_out_loss: HeldOutLoss | None
) -> dict[str, Trained]:
    def begin(done: int) -> None:
        if config.train.method == "full":  # the state now holds the weights, in float32
            jax.tree.map(lambda w: w.delete(), lm.params)
        open_run.rewind(done or -1)

    with (
        Checkpoints(
            open_run.out / _CHECKPOINTS, asynchronous=True, identity=identity_of(config)
        ) as checkpoints,
        progress_bars(config.quiet) as on_progress,
    ):
        return fit(
            trainer,
            lm.params,
            checkpoints,
            config.save_every,
            begin=begin,
            log=open_run.log,
            held_out=held_out_loss,
            on_progress=on_progress,
        )


def _results(
    config: Config, trainer: Trainer, lm: LM, trained: dict[str, Trained]
) -> tuple[Adapter | None, LM | None]:
    """Return the adapter and the whole model; None for what is not wanted.

    Both are whole on every device, so that process 0 can write them. If the model runs on several
    processes and is too large for one device, merge its adapter on a single host instead.
    """
    if config.train.method == "full":
        return None, trained_model(trainer, trained, lm)
    (adapter,) = trained_adapters(trainer, trained, lm.name).values()
    return adapter, merged_model(lm, adapter) if config.merge else None


def _save(config: Config, adapter: Adapter | None, model: LM | None) -> None:
    if adapter is not None:
        adapter.save_peft(config.out / "adapter")
    if model is not None:
        # A run that is resumed at its end has written the model before.
        shutil.rmtree(config.out / "model", ignore_errors=True)
        folder = model.folder
        save_checkpoint(
            config.out / "model", model.params, model.config, more=_special_token_ids(folder)
        )
        for file in itertools.chain.from_iterable(map(folder.glob, _COMPANIONS)):
            if file.is_file():
                shutil.copy(file, config.out / "model" / file.name)


def _show_losses(open_run: Run) -> None:
    """Draw loss.png and print how the held-out loss changed."""
    rows = [(row["step"], row[JOINT]) for row in open_run.metrics.read()]
    losses = {
        label: {step: row[key] for step, row in rows if key in row}
        for label, key in (("examples trained on", "loss"), ("held out", "held_out_loss"))
    }
    save_training_losses(open_run.out / "loss.png", losses)
    if held_out := losses["held out"]:
        last, best = max(held_out), min(held_out, key=held_out.get)
        print(
            f"held-out loss {held_out[0]:.4f} before, {held_out[last]:.4f} after; lowest "
            f"{held_out[best]:.4f} after step {best} of {last}"
        )


def _special_token_ids(folder: Path) -> dict[str, Any]:
    """Return the ids of the tokens that begin, end and pad a text, from the base model's config."""
    fields = json.loads((folder / "config.json").read_text("utf-8"))
    return {n: fields[n] for n in ("bos_token_id", "eos_token_id", "pad_token_id") if n in fields}
