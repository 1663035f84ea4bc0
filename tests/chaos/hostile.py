"""Files that try to run code: templates, tokenizers, pickles, and texts in a run's record.

The code would make a file, the canary.
"""

from __future__ import annotations

import dataclasses
import json
import pickle
import random
import shutil
from collections.abc import Callable
from pathlib import Path

from jaxalign.pocket import MODEL_FOLDER
from tests.chaos.bench import Bench
from tests.chaos.jobs import Job

# {0} is the path of the canary. Each has made a file in some version of some library.
_PAYLOADS = (
    "{{{{ cycler.__init__.__globals__.os.system('touch {0}') }}}}",
    "{{{{ self.__init__.__globals__.__builtins__.open('{0}', 'w') }}}}",
    "{{{{ lipsum.__globals__['os'].popen('touch {0}').read() }}}}",
    "{{% for c in ''.__class__.__mro__[1].__subclasses__() %}}{{% if c.__name__ == 'Popen' %}}"
    "{{{{ c('touch {0}', shell=True) }}}}{{% endif %}}{{% endfor %}}",
    "{{{{ ('%s' | format('a')).format.__globals__ }}}}{{{{ open('{0}', 'w') }}}}",
    "{{{{ messages.__class__.__base__.__subclasses__() | map('touch {0}') | list }}}}",
)


def _payload(canary: Path, chance: random.Random) -> str:
    return chance.choice(_PAYLOADS).format(canary)


class _Runs:
    """Unpickled, it runs a command."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self):
        import os

        return os.system, (self.command,)


def _model(folder: Path) -> Path:
    copy = folder / "model"
    shutil.copytree(MODEL_FOLDER, copy)
    return copy


def _of_model(job: Job, model: Path, folder: Path) -> Job:
    """Return the job with another model; a sweep names it in its file."""
    if job.name != "sweep":
        return dataclasses.replace(job, settings=(*job.settings, "--model", str(model)))
    given, *others = job.settings
    file = folder / "sweep.toml"
    models = f"models = [{json.dumps(str(model))}]\n"
    file.write_text(models + Path(given).read_text("utf-8"), "utf-8")
    return dataclasses.replace(job, settings=(str(file), *others))


def _edit(path: Path, **fields: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | fields), "utf-8")


def chat_template(bench: Bench, job: Job, folder: Path, canary: Path, chance: random.Random) -> Job:
    """A model whose chat template runs code."""
    model = _model(folder)
    path = model / "tokenizer_config.json"
    template = json.loads(path.read_text("utf-8"))["chat_template"]
    _edit(path, chat_template=_payload(canary, chance) + template)
    if chance.random() < 0.5:
        (model / "chat_template.jinja").write_text(_payload(canary, chance) + template, "utf-8")
    return _of_model(job, model, folder)


def tokenizer(bench: Bench, job: Job, folder: Path, canary: Path, chance: random.Random) -> Job:
    """A model with modules of its own for its tokenizer, its configuration and itself."""
    model = _model(folder)
    code = f"open({str(canary)!r}, 'w').close()\nclass Evil: pass\n"
    for module in ("tokenization_evil", "configuration_evil", "modeling_evil"):
        (model / f"{module}.py").write_text(code, "utf-8")
    _edit(
        model / "tokenizer_config.json",
        auto_map={"AutoTokenizer": [None, "tokenization_evil.Evil"]},
        tokenizer_class="Evil",
    )
    auto = {"AutoConfig": "configuration_evil.Evil", "AutoModelForCausalLM": "modeling_evil.Evil"}
    _edit(model / "config.json", auto_map=auto)
    return _of_model(job, model, folder)


def pickled_weights(
    bench: Bench, job: Job, folder: Path, canary: Path, chance: random.Random
) -> Job:
    """A model whose weights are a pickle."""
    model = _model(folder)
    if chance.random() < 0.5:
        (model / "model.safetensors").unlink()
    evil = pickle.dumps(_Runs(f"touch {canary}"))
    for name in ("pytorch_model.bin", "training_args.bin", "tokenizer.model"):
        (model / name).write_bytes(evil)
    return _of_model(job, model, folder)


def prompt_texts(bench: Bench, job: Job, folder: Path, canary: Path, chance: random.Random) -> Job:
    """A folder of prompt texts that run code."""
    texts = folder / "texts"
    shutil.copytree(MODEL_FOLDER / "prompts", texts)
    for path in texts.glob("*.jinja"):
        path.write_text(path.read_text("utf-8") + _payload(canary, chance), "utf-8")
    assert job.texts is not None
    return dataclasses.replace(job, settings=(*job.settings, job.texts, str(texts)))


def record(bench: Bench, job: Job, folder: Path, canary: Path, chance: random.Random) -> Job:
    """A run from a stranger: code in every text of its JSON, and pickles for its arrays."""
    out = folder / "run"
    bench.stopped(job.name, chance, out)

    def evil(value: object) -> object:
        if isinstance(value, dict):
            return {key: evil(each) for key, each in value.items()}
        if isinstance(value, list):
            return [evil(each) for each in value]
        if isinstance(value, str) and ("{" in value or len(value) > 40):
            return value + _payload(canary, chance)
        return value

    arrays = [*out.rglob("*.npy"), *out.rglob("manifest.ocdbt"), *out.rglob("_METADATA")]
    for path in out.rglob("*.json"):
        path.write_text(json.dumps(evil(json.loads(path.read_text("utf-8")))), "utf-8")
    for path in arrays:
        path.write_bytes(pickle.dumps(_Runs(f"touch {canary}")))
    return job


FILES: dict[str, Callable[[Bench, Job, Path, Path, random.Random], Job]] = {
    "chat template": chat_template,
    "tokenizer and modules": tokenizer,
    "pickled weights": pickled_weights,
    "prompt texts": prompt_texts,
    "run of a stranger": record,
}
