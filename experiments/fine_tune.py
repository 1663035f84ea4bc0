"""Fine-tune a Llama on conversations of your own: supervised, on the last reply of each.

    python -m experiments.fine_tune --data conversations.jsonl --out runs/tuned   # the pocket Llama
    python -m experiments.fine_tune --data conversations.jsonl --out runs/tuned-8b \\
        --model /path/to/Meta-Llama-3-8B-Instruct

Every line of the file is {"messages": [{"role": "user", "content": "..."}, ..., {"role":
"assistant", "content": "..."}]}; the loss counts the last message alone, its end of turn included.
The result is a PEFT adapter in OUT/adapter, and with --merge or --train.method full a whole model
in OUT/model that transformers reads. A killed run continues with --resume and ends with the same
bits, on as many devices as before. The pocket Llama takes seconds to minutes on a CPU; an 8B model
wants a GPU or TPU, examples spread over --data-parallel devices and weights over --model-parallel
ones.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jax

from jaxalign.checkpoints import Checkpoints
from jaxalign.console import main
from jaxalign.errors import UserError
from jaxalign.llama.checkpoint import load_checkpoint, save_checkpoint, weights_sha256
from jaxalign.llama.config import LlamaConfig, read_config
from jaxalign.llama.tokens import Message, Tokens, check_vocabulary
from jaxalign.llama.weights import Params, param_shardings
from jaxalign.lora import Adapter, LoraConfig, merge
from jaxalign.lora_files import save_lora
from jaxalign.mesh_here import mesh_here
from jaxalign.packing import Example
from jaxalign.pocket import MODEL_FOLDER
from jaxalign.records import Run, check, may_change
from jaxalign.sharding import replicated
from jaxalign.train import TrainConfig, Trainer, TrainState, adapters, fit

_NAME = "joint"  # the one adapter's
_ROLES = ("system", "user", "assistant", "tool", "ipython")
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


def tune(config: Config) -> None:
    """The whole experiment; see the module's docstring."""
    check(config.out, config, config.resume)
    folder = config.model or MODEL_FOLDER
    llama = read_config(folder, _dtype(config))
    tokens = Tokens.load(folder)
    check_vocabulary(tokens, llama)
    longest = min(config.longest, llama.max_position_embeddings)
    examples, left_out = read_examples(config.data, tokens, longest)
    print(f"{len(examples)} conversations, {left_out} left out for more than {longest} tokens")
    mesh, choice = mesh_here(llama, None, model=config.model_parallel, data=config.data_parallel)
    print(choice.describe())
    trainer = Trainer(llama, config.train, config.lora, {_NAME: examples}, mesh)
    shape, steps = trainer.data.shape, trainer.data.steps
    print(
        f"{steps} steps of up to {shape.passes} x {shape.rows} rows of {shape.row_length} tokens; "
        f"the compiled step needs {trainer.needed_bytes / 2**20:,.0f} MiB per device"
    )
    facts = {
        "model_sha256": weights_sha256(folder),
        "data_sha256": hashlib.sha256(config.data.read_bytes()).hexdigest(),
        "examples": len(examples),
        "left_out": left_out,
    }
    params = load_checkpoint(folder, llama, param_shardings(llama, mesh))
    with Run.create(config.out, config, facts, config.resume, step="step") as run:
        for note in run.notes:
            print(note)
        state = _fit(config, run, trainer, params)
        adapter, model = _tuned(config, trainer, params, state)
        if run.writes:
            _save(config, llama, adapter, model, folder)
    print(f"everything is in {config.out}")


def _fit(config: Config, run: Run, trainer: Trainer, params: Params) -> TrainState:
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
        )


def read_examples(path: Path, tokens: Tokens, longest: int) -> tuple[list[Example], int]:
    """The examples of a file, and how many conversations were too long.

    Raises UserError with the line's number for one that is not a conversation.
    """
    if not path.is_file():
        raise UserError(f"--data {path}: no such file")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"--data {path}: not UTF-8 ({error.reason} at byte {error.start})"
        ) from None
    examples, left_out = [], 0
    # Not splitlines: JSON may hold other line separators, as they are.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"--data {path}, line {number}"
        messages = _messages(line, where)
        try:
            example = chat_example(tokens, messages)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        if len(example.tokens) > longest:
            left_out += 1
        else:
            examples.append(example)
    if not examples:
        raise UserError(
            f"--data {path}: no conversation of at most {longest} tokens, and {left_out} longer"
        )
    return examples, left_out


def _messages(line: str, where: str) -> list[Message]:
    try:
        messages = json.loads(line)["messages"]
        fields = [(m["role"], m["content"]) for m in messages]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f'{where}: not {{"messages": [...]}} ({error!r})') from None
    if not all(isinstance(value, str) for field in fields for value in field):
        raise UserError(f"{where}: role and content must be text")
    if unknown := [role for role, _ in fields if role not in _ROLES]:
        raise UserError(f"{where}: role {unknown[0]!r}; one of {', '.join(_ROLES)}")
    if len(fields) < 2 or fields[-1][0] != "assistant" or not fields[-1][1].strip():
        raise UserError(f"{where}: a conversation ends with what the assistant replies")
    return [{"role": role, "content": content} for role, content in fields]


def chat_example(tokens: Tokens, messages: Sequence[Message]) -> Example:
    """The conversation, its last reply being the answer.

    Prompt and reply are tokenised apart, as they are when the model replies. Raises UserError for a
    chat template that writes the beginning of a conversation otherwise once it has been replied to.
    """
    asked = tokens.render(messages[:-1])
    whole = tokens.render(messages, add_generation_prompt=False)
    if not whole.startswith(asked):
        raise UserError(
            f"{tokens.folder}: the chat template writes a prompt otherwise once it has a reply, so "
            "where the reply begins cannot be told"
        )
    prompt = tokens.encode(asked)
    return Example((*prompt, *tokens.encode(whole[len(asked) :])), len(prompt))


def _tuned(
    config: Config, trainer: Trainer, params: Params, state: TrainState
) -> tuple[Adapter | None, Params | None]:
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
    config: Config, llama: LlamaConfig, adapter: Adapter | None, model: Params | None, folder: Path
) -> None:
    if adapter is not None:
        save_lora(config.out / "adapter", adapter, llama, config.lora, str(folder))
    if model is not None:
        shutil.rmtree(config.out / "model", ignore_errors=True)  # of a run resumed at its end
        save_checkpoint(config.out / "model", model, llama, more=_token_ids(folder))
        for file in itertools.chain.from_iterable(map(folder.glob, _BESIDE)):
            if file.is_file():
                shutil.copy(file, config.out / "model" / file.name)


def _token_ids(folder: Path) -> dict[str, Any]:
    """Which tokens begin, end and fill a text, where the base model's config.json says so."""
    fields = json.loads((folder / "config.json").read_text("utf-8"))
    return {n: fields[n] for n in ("bos_token_id", "eos_token_id", "pad_token_id") if n in fields}


def _dtype(config: Config) -> str:
    if config.dtype != "auto":
        return config.dtype
    return "float32" if config.model is None else "bfloat16"


if __name__ == "__main__":
    main(tune, Config)
