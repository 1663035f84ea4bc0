"""Write what a run has tuned so that another engine serves it.

    jaxalign export runs/soft_prompt-20261130-120000 --to vllm --out served

vLLM serves soft prompts as embeddings of the whole conversation: the folder gets the prompts and a
client, which applies the chat template, puts the prompt in its place and asks the server. Adapters
are served by vLLM itself: the folder gets copies, and the README the line that starts the server.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import tyro

from jaxalign.core.errors import UserError
from jaxalign.core.files import write_text
from jaxalign.lm.model import ModelFiles, open_model
from jaxalign.lm.peft import CONFIG as ADAPTER_CONFIG
from jaxalign.lm.peft import WEIGHTS as ADAPTER_WEIGHTS
from jaxalign.methods.soft_prompt.prompt import SoftPrompt
from jaxalign.methods.tuned import (
    TunedRun,
    load_adapters_by_name,
    load_prompts_by_name,
    read_tuned_run,
)

CLIENT = '''\
"""Ask a vLLM server under a soft prompt, after vllm serve {model_name} --enable-prompt-embeds

    python client.py {example} "Is family important to you?"
"""

import base64, io, json, sys, urllib.request
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

MODEL = {model}
PLACEMENTS = {placements}
PLACE = "[[soft prompt]]"


def embed(question, name, tokenizer, table):
    """Return a conversation's embeddings with the soft prompt in its place, [tokens, width]."""
    place = PLACEMENTS[name]
    messages = [{{"role": "system", "content": PLACE}}] if place == "system" else []
    ending = "\\n" + PLACE if place == "after" else ""
    messages.append({{"role": "user", "content": question + ending}})
    text = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=False, date_string="26 Jul 2024"
    )
    text = PLACE + text if place == "front" else text
    ids = [tokenizer.encode(part, add_special_tokens=False) for part in text.split(PLACE)]
    before, after = (table(torch.tensor(part, dtype=torch.long)) for part in ids)
    prompt = load_file(Path(__file__).with_name("prompts") / f"{{name}}.safetensors")["prompt"]
    return torch.cat([before, prompt.to(before.dtype), after]).detach()


def ask(embeddings, server="http://localhost:8000", max_tokens=100):
    """Return the server's greedy reply to a conversation that is given as embeddings."""
    file = io.BytesIO()
    torch.save(embeddings, file)
    body = {{"model": MODEL, "prompt_embeds": base64.b64encode(file.getvalue()).decode()}}
    body |= {{"max_tokens": max_tokens, "temperature": 0}}
    header = {{"Content-Type": "application/json"}}
    data = json.dumps(body).encode()
    request = urllib.request.Request(f"{{server}}/v1/completions", data, header)
    with urllib.request.urlopen(request) as reply:
        return json.load(reply)["choices"][0]["text"]


if __name__ == "__main__":
    name, question = sys.argv[1:]
    table = AutoModelForCausalLM.from_pretrained(MODEL, dtype="auto").get_input_embeddings()
    print(ask(embed(question, name, AutoTokenizer.from_pretrained(MODEL), table)))
'''

_README = "# {run}, for vLLM\n\nModel: {model}\n"
_PROMPTS = """
## Soft prompts

    vllm serve {model} --enable-prompt-embeds
    python client.py {example} "Is family important to you?"

`client.py` needs torch, transformers and safetensors; it makes the embeddings of the conversation,
the soft prompt among them, from the model's own table. Prompts: {names}.
"""
_ADAPTERS = """
## Adapters

    vllm serve {model} --enable-lora --max-lora-rank {rank} --lora-modules {modules}

A request chooses an adapter by its name as `model`; the model's own name asks it as it was.
"""
_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM accepts as --max-lora-rank


@dataclasses.dataclass(frozen=True)
class ExportSettings:
    """Write what a run has tuned so that another engine serves it."""

    run: tyro.conf.Positional[Path]
    """Directory of the run."""
    out: Path
    """Folder to write; it must not exist yet."""
    to: Literal["vllm"] = "vllm"
    """Engine that will serve it."""
    model: str | None = None
    """The model, if it is no longer where the run found it: a Hugging Face folder or a hub id."""


def export(settings: ExportSettings) -> None:
    """Write the folder, and say how to start the server."""
    print(export_to_vllm(settings.run, settings.out, model=settings.model).read_text("utf-8"))


def export_to_vllm(run: str | Path, out: str | Path, *, model: str | None = None) -> Path:
    """Write the soft prompts and adapters of a run, and how vLLM serves them.

    Args:
        run: Directory of a run.
        out: Folder to write: `prompts/` and `client.py` for soft prompts, `adapters/`, `README.md`.
        model: The model, if it is no longer where the run found it.

    Returns:
        The path of the README.

    Raises:
        UserError: If the run has tuned nothing that is served beside a model, its model cannot be
            opened or is a GGUF file, a file is damaged, or `out` exists.
    """
    tuned, out = read_tuned_run(run), Path(out)
    if tuned is None:
        raise UserError(f"`run` {run}: not the directory of a run")
    if out.exists():
        raise UserError(f"`out` {out}: exists already; give another folder")
    if not tuned.prompts and not tuned.adapters:
        whole = tuned.folder / "model"
        remedy = f"; it tuned all weights: vllm serve {whole}" if whole.is_dir() else ""
        raise UserError(f"`run` {run}: holds neither soft prompts nor adapters{remedy}")
    files = open_model(model or tuned.model)
    if files.weights_file is not None:
        raise UserError(
            f"`model` {files.name}: a GGUF file; write a folder with jaxalign convert and name that"
        )
    prompts = load_prompts_by_name(tuned.prompts, files)
    load_adapters_by_name(tuned.adapters, files)  # so that none is damaged
    _check_tokenizer(files, prompts)
    name = str(files.folder) if files.revision is None else files.name
    parts = [_README.format(run=tuned.folder.name, model=name)]
    if prompts:
        parts.append(_write_prompts(out, name, prompts))
    if tuned.adapters:
        parts.append(_write_adapters(out, name, tuned))
    readme = out / "README.md"
    write_text(readme, "".join(parts))
    return readme


def _check_tokenizer(files: ModelFiles, prompts: Mapping[str, SoftPrompt]) -> None:
    """Refuse prompts inside a conversation whose two sides the client would tokenise otherwise."""
    inside = [name for name, prompt in prompts.items() if prompt.placement != "front"]
    if inside and files.tokenizer.adds_space:
        raise UserError(
            f"{inside[0]}: its placement is {prompts[inside[0]].placement}, and the tokenizer of "
            f"{files.name} puts a space before every text; only placement front can be exported"
        )


def _write_prompts(out: Path, model: str, prompts: Mapping[str, SoftPrompt]) -> str:
    """Write prompts and their client; return their part of the README."""
    for name, prompt in prompts.items():
        prompt.save(out / "prompts" / f"{name}.safetensors")
    placements = {name: prompt.placement for name, prompt in prompts.items()}
    example = min(placements)
    filled = {"model": json.dumps(model), "placements": json.dumps(placements)}
    write_text(out / "client.py", CLIENT.format(model_name=model, example=example, **filled))
    return _PROMPTS.format(model=model, example=example, names=", ".join(sorted(placements)))


def _write_adapters(out: Path, model: str, tuned: TunedRun) -> str:
    """Copy adapters; return their part of the README."""
    # Those of several seeds are called seed0/joint.
    names = {name: name.replace("/", "-") for name in tuned.adapters}
    ranks = []
    for name, folder in tuned.adapters.items():
        copy = out / "adapters" / names[name]
        copy.mkdir(parents=True)
        for file in (ADAPTER_WEIGHTS, ADAPTER_CONFIG):
            shutil.copy2(folder / file, copy)
        ranks.append(json.loads((folder / ADAPTER_CONFIG).read_text("utf-8"))["r"])
    rank = next((rank for rank in _RANKS if rank >= max(ranks)), max(ranks))
    modules = " ".join(f"{name}=adapters/{name}" for name in names.values())
    return _ADAPTERS.format(model=model, rank=rank, modules=modules)
