"""Fine-tune a Llama on conversations of your own: supervised, on the last reply of each.

    python -m experiments.fine_tune --data conversations.jsonl --out runs/tuned   # the pocket Llama
    python -m experiments.fine_tune --data conversations.jsonl --out runs/tuned-8b \\
        --model /path/to/Meta-Llama-3-8B-Instruct

Every line of the file is {"messages": [{"role": "user", "content": "..."}, ..., {"role":
"assistant", "content": "..."}]}; the loss counts the last message alone, its end of turn included.
OUT/loss.png shows it over the steps, with --held-out-share also on questions that are not trained
on. The result is a PEFT adapter in OUT/adapter, and with --merge or --train.method full a whole
model in OUT/model that transformers reads. A killed run continues with --resume and ends with the
same bits, on as many devices as before. The pocket Llama takes seconds to minutes on a CPU; an 8B
model wants a GPU or TPU, examples spread over --data-parallel devices and weights over
--model-parallel ones.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import json
import shutil
from pathlib import Path
from typing import Any, Literal

import jax

from jaxalign.core.errors import UserError
from jaxalign.lm.checkpoint import load_checkpoint, save_checkpoint, weights_sha256
from jaxalign.lm.config import LlamaConfig, read_config
from jaxalign.lm.lora import AdapterWeights, LoraConfig, merge
from jaxalign.lm.mesh import device_mesh
from jaxalign.lm.peft import save_lora
from jaxalign.lm.tokenizer import Tokenizer, check_vocabulary
from jaxalign.lm.weights import Params, param_shardings
from jaxalign.pocket import MODEL_FOLDER
from jaxalign.report.figures import save_training_losses
from jaxalign.runs import Run, check_run, may_change
from jaxalign.runs.checkpoints import Checkpoints
from jaxalign.runtime.sharding import replicated
from jaxalign.training.conversations import hold_out, read_conversations
from jaxalign.training.trainer import HeldOutLoss, TrainConfig, Trainer, TrainState, adapters, fit

_NAME = "joint"  # the one adapter's
_BESIDE = (  # files of a model's folder that say how it is spoken to
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt",
    "chat_template*", "generation_config.json",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Config:
    """Fine-tune a Llama on the last reply of conversations."""

    data: Path
    """File of JSON lines, each {"messages": [...]} that ends with the assistant."""
    out: Path = may_change(dataclasses.MISSING)
    """Directory of the run."""
    resume: bool = may_change(False)
    """Continue the run in --out; it ends with the same bits as one that was never stopped (on
    another number of devices: the same to rounding)."""
    model: Path | None = None
    """Folder of a Hugging Face Llama; default: the pocket Llama that ships with the package."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of weights and activations; auto: float32 for the pocket Llama, bfloat16 for others.
    What is trained is float32 always."""
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    lora: LoraConfig = dataclasses.field(default_factory=LoraConfig)
    longest: int = 2048
    """Tokens; longer conversations are left out, and counted. At most what the model can see."""
    held_out_share: float = 0.0
    """Of the different questions: those not trained on. The loss on them is measured before
    training and ten times on the way; where it rises, the model learns its examples by heart."""
    data_parallel: int | None = may_change(None)
    """Devices that examples are spread over; default: all that --model-parallel leaves."""
    model_parallel: int | None = may_change(None)
    """Devices that share one copy of the weights; default: as few as memory allows."""
    save_every: int = may_change(100)
    """Steps between checkpoints."""
    merge: bool = may_change(False)
    """Write the whole model with the adapter merged into it, too."""
    quiet: bool = may_change(False)
    """No progress bar."""

    def __post_init__(self) -> None:
        for name in ("longest", "save_every"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name.replace('_', '-')} {getattr(self, name)}: at least 1")
        if not 0 <= self.held_out_share < 1:
            raise UserError(f"--held-out-share {self.held_out_share}: at least 0 and less than 1")


def tune(config: Config) -> None:
    """The whole experiment; see the module's docstring."""
    check_run(config.out, config, config.resume)
    folder = config.model or MODEL_FOLDER
    llama = read_config(folder, _dtype(config))
    tokens = Tokenizer.load(folder)
    check_vocabulary(tokens, llama)
    longest = min(config.longest, llama.max_position_embeddings)
    conversations, left_out = read_conversations(config.data, tokens, longest)
    print(f"{len(conversations)} conversations, {left_out} left out for more than {longest} tokens")
    examples, apart = hold_out(conversations, config.held_out_share, config.train.seed)
    if apart:
        print(f"{len(apart)} of them are held out")
    mesh, choice = device_mesh(
        llama,
        None,
        model_parallel=config.model_parallel,
        data_parallel=config.data_parallel,
    )
    print(choice.describe())
    trainer = Trainer(llama, config.train, config.lora, {_NAME: examples}, mesh)
    held_out = HeldOutLoss(trainer, {_NAME: apart}) if apart else None
    shape, steps = trainer.data.shape, trainer.data.steps
    print(
        f"{steps} steps of up to {shape.passes} x {shape.rows} rows of {shape.row_length} tokens; "
        f"the compiled step needs {trainer.needed_bytes / 2**20:,.0f} MiB per device"
    )
    facts = {
        "model_sha256": weights_sha256(folder),
        "data_sha256": hashlib.sha256(config.data.read_bytes()).hexdigest(),
        "examples": len(examples),
        "held_out": len(apart),
        "left_out": left_out,
    }
    params = load_checkpoint(folder, llama, param_shardings(llama, mesh))
    with Run.create(config.out, config, facts, config.resume, step="step") as run:
        for note in run.notes:
            print(note)
        state = _fit(config, run, trainer, params, held_out)
        adapter, model = _tuned(config, trainer, params, state)
        if run.writes:
            _save(config, llama, adapter, model, folder)
            _show(run)
    print(f"everything is in {config.out}")


def _fit(
    config: Config, run: Run, trainer: Trainer, params: Params, held_out: HeldOutLoss | None
) -> TrainState:
    def begin(done: int) -> None:
        if config.train.method == "full":  # the state holds them now, in float32
            jax.tree.map(lambda w: w.delete(), params)
        run.rewind(done or -1)

    with Checkpoints(run.out / "checkpoints", asynchronous=True) as checkpoints:
        return fit(
            trainer,
            params,
            checkpoints,
            config.save_every,
            begin=begin,
            log=run.log,
            quiet=config.quiet,
            held_out=held_out,
        )


def _tuned(
    config: Config, trainer: Trainer, params: Params, state: TrainState
) -> tuple[AdapterWeights | None, Params | None]:
    """The adapter, and the whole model in the dtype of its weights; None for what is not wanted.

    Whole on every device, so that process 0 can write them: for a model over several processes
    that is too large for one device, merge the adapter on one host.
    """
    (trained,) = adapters(trainer, state).values()
    dtype = jax.numpy.dtype(trainer.config.param_dtype)
    to_dtype = lambda weights: jax.tree.map(lambda w: w.astype(dtype), weights)  # noqa: E731
    gather = functools.partial(jax.jit, out_shardings=replicated(trainer.mesh))
    if config.train.method == "full":
        return None, gather(to_dtype)(trained)
    adapter = gather(lambda x: x)(trained)
    if not config.merge:
        return adapter, None
    merged = gather(lambda params, adapter: merge(params, adapter, config.lora))
    return adapter, merged(params, adapter)


def _save(
    config: Config,
    llama: LlamaConfig,
    adapter: AdapterWeights | None,
    model: Params | None,
    folder: Path,
) -> None:
    if adapter is not None:
        save_lora(config.out / "adapter", adapter, llama, config.lora, str(folder))
    if model is not None:
        shutil.rmtree(config.out / "model", ignore_errors=True)  # of a run resumed at its end
        save_checkpoint(config.out / "model", model, llama, more=_token_ids(folder))
        for file in itertools.chain.from_iterable(map(folder.glob, _BESIDE)):
            if file.is_file():
                shutil.copy(file, config.out / "model" / file.name)


def _show(run: Run) -> None:
    """loss.png, and where the held-out loss stood."""
    rows = [(row["step"], row[_NAME]) for row in run.metrics.read()]
    losses = {
        words: {step: row[key] for step, row in rows if key in row}
        for words, key in (("examples trained on", "loss"), ("held out", "held_out_loss"))
    }
    save_training_losses(run.out / "loss.png", losses)
    if held_out := losses["held out"]:
        last, best = max(held_out), min(held_out, key=held_out.get)
        print(
            f"held-out loss {held_out[0]:.4f} before, {held_out[last]:.4f} after; lowest "
            f"{held_out[best]:.4f} after step {best} of {last}"
        )


def _token_ids(folder: Path) -> dict[str, Any]:
    """Which tokens begin, end and fill a text, where the base model's config.json says so."""
    fields = json.loads((folder / "config.json").read_text("utf-8"))
    return {n: fields[n] for n in ("bos_token_id", "eos_token_id", "pad_token_id") if n in fields}


def _dtype(config: Config) -> str:
    if config.dtype != "auto":
        return config.dtype
    return "float32" if config.model is None else "bfloat16"
