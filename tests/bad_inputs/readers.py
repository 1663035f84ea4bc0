"""Every reader of a file from elsewhere, and the smallest file that it takes.

A reader is given a folder in which its good file has been written under `file`, and perhaps
changed since.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors.numpy import save

from experiments.culturespa.studies.finished import read_finished
from jaxalign.answering.partial import open_partial
from jaxalign.commands.sweep.file import read_sweep
from jaxalign.commands.sweep.status import show_status
from jaxalign.lm.config import config_to_hf, read_config
from jaxalign.lm.gguf import describe_gguf
from jaxalign.lm.model import ModelFiles, open_model
from jaxalign.lm.peft import load_lora, load_prompt, load_prompt_tuning, save_prompt
from jaxalign.lm.safetensors_io import find_files, read_spans, read_weight_map
from jaxalign.lm.tokenizer import Tokenizer
from jaxalign.methods.culturespa.fine_tune import read_set_aside
from jaxalign.methods.culturespa.questions import read_questions
from jaxalign.methods.culturespa.similar import read_ranking
from jaxalign.methods.culturespa.training_steps import read_steps
from jaxalign.prompts import load_prompts
from jaxalign.runs import MetricsFile
from jaxalign.runs.run import FORMAT, check_run, recorded_run
from jaxalign.runs.settings import settings_of
from jaxalign.surveys import read_survey
from jaxalign.surveys.factor_scores import read_factor_scores
from jaxalign.surveys.formats import read_any
from jaxalign.surveys.hofstede import edition_scores
from jaxalign.surveys.options import SurveyOptions
from jaxalign.surveys.reply_files import read_replies
from jaxalign.surveys.survey import Item, Survey, load, to_json
from jaxalign.training.conversations import read_conversations
from jaxalign.training.shape import Shape
from jaxalign.training.step import TrainConfig
from tests.support.parity_cases import BASE

Kind = Literal["json", "text", "binary"]


@dataclasses.dataclass(frozen=True)
class Reader:
    """A reader and its good file.

    Attributes:
        file: The file's name; messages hold the last part of it, or `says`.
        good: What the file holds.
        read: Reads it; given the folder.
        kind: What can be wrong with it (`damage`).
        others: Files beside it, by name.
        takes: Names of damage that this reader has a reason to take.
        says: What a message holds where it does not name the file.
    """

    file: str
    good: bytes
    read: Callable[[Path], Any]
    kind: Kind = "json"
    others: dict[str, bytes] = dataclasses.field(default_factory=dict)
    takes: frozenset[str] = frozenset()
    says: str = ""

    def write(self, folder: Path) -> Path:
        """Write the good file and those beside it; return the path of the former."""
        for name, content in {**self.others, self.file: self.good}.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        return folder / self.file


def as_json(value: Any) -> bytes:
    return json.dumps(value).encode()


@functools.cache
def pocket() -> ModelFiles:
    return open_model()


def survey_fields() -> dict[str, Any]:
    """Return a survey of two items, with how two countries answered."""
    items = tuple(Item(f"q{n}", f"Is {n} enough?", ("no", "yes"), (1, 2)) for n in (1, 2))
    shares = {"q1": (0.5, 0.5), "q2": (0.25, 0.75)}
    made = Survey("example", "1", "made up", "paraphrase", items, {"USA": shares, "CHN": shares})
    return to_json(made)


OWN_CSV = b"id,text,options\nq1,Is one enough?,1=no|2=yes\nq2,Is two enough?,1=no|2=yes\n"
SHARES_CSV = b"country,item,code,share\nUSA,q1,1,0.5\nUSA,q1,2,0.5\nUSA,q2,1,1\n"
WVS_CSV = ("B_COUNTRY_ALPHA,W_WEIGHT,Q1,Q2\n" + "USA,1,2,1\nCHN,1,1,2\n" * 60).encode()
WORDING_CSV = (
    b"id,text,options\nQ1,How important is family?,1=very|2=rather|3=not very|4=not at all\n"
)
MMLU_CSV = b"question,A,B,C,D,answer\nWhich is even?,1,3,4,5,C\nWhich is odd?,2,3,4,6,B\n"
BENCH_CSV = (
    b"data_idx,question_idx,prompt_question,prompt_option_a,prompt_option_b,prompt_option_c,"
    b"prompt_option_d,answer,country\n0,1,Which city is the capital of Peru?,Lima,Rome,Oslo,Bonn,A,"
    b"Peru\n"
)
OPINIONS_CSV = (
    b"question,selections,options,source\n"
    b"Is it good?,\"{'China': [0.5, 0.5], 'Peru': [0.2, 0.8]}\",\"['yes', 'no']\",GAS\n"
)
FACTORS_CSV = b"factor,item,weight,group,target\ncare,m05,-1.5,,\ncare,,,USA,0.3\n"
FACTORS = {"factors": {"care": {"items": {"m05": -1.5}}}, "targets": {"USA": {"care": 0.3}}}
SCORES_CSV = b"group,pdi,idv,mas,uai,lto,ivr\nUSA,40,91,62,46,26,68\n"
HARNESS = {"doc": {"Q_id": "q1", "country": "USA", "mode": "aware"}, "resps": [["1"]]}
INSPECT = {
    "version": 2,
    "status": "success",
    "samples": [
        {
            "id": 1,
            "metadata": {"Q_id": "q1", "country": "USA", "mode": "aware"},
            "output": {"completion": "1"},
        }
    ],
}
CULTURESPA_REPLIES = [{"Q_id": "q1", "country": "USA", "answer": "1"}]
QUESTION = {"question": "Is it so?", "option_lst": ["no", "yes"], "class": "things"}
TALK = [
    {"role": "user", "content": "1 or 2?"},
    {"role": "assistant", "content": "2"},
]
SWEEP = b"""
countries = ["USA", "CHN"]
seeds = [3, 8]
prompt_lengths = [2]
generations = 3

[[strategies]]
name = "small"
population = 8
"""
CONFIG = config_to_hf(BASE)
SWEEP_SETTINGS = {"prompt_lengths": [2], "base_config.reading": "expected"}
_RECORD = {"format": FORMAT, "facts": {}, "versions": {}}
LORA = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
PROMPT_TUNING = {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 2, "token_dim": 8}
SHAPE = dataclasses.asdict(Shape(1, 1, 1, 32, 4, 16))
METRICS = b"".join(as_json({"generation": n, "USA": {"best": 1.0}}) + b"\n" for n in range(4))


def tensors(**arrays: np.ndarray) -> bytes:
    return save(arrays, metadata={"format": "pt"})


def lora_weights() -> bytes:
    """Return an adapter of the queries of every layer of `BASE`."""
    inputs = BASE.num_attention_heads * BASE.head_dim
    named = {}
    for layer in range(BASE.num_hidden_layers):
        stem = f"base_model.model.model.layers.{layer}.self_attn.q_proj.lora"
        named[f"{stem}_A.weight"] = np.ones((2, BASE.hidden_size), np.float32)
        named[f"{stem}_B.weight"] = np.ones((inputs, 2), np.float32)
    return save(named, metadata={"format": "pt"})


def rows_file() -> bytes:
    """Return the rows of answers that `open_partial` writes."""
    file = io.BytesIO()
    np.save(file, np.zeros(3, [("values", "float32", (2,)), ("crc", "<u4")]))
    return file.getvalue()


def pocket_file(name: str) -> bytes:
    return (pocket().folder / name).read_bytes()


# A file that need not be there, or a link that leads nowhere.
NO_FILE_IS_FINE = frozenset(["no such file", "a link to itself", "a link to nothing"])
READERS: dict[str, Callable[[], Reader]] = {
    "survey as JSON": lambda: Reader(
        "survey.json", as_json(survey_fields()), lambda f: read_survey(f / "survey.json")
    ),
    "survey as JSON, by `load`": lambda: Reader(
        "survey.json", as_json(survey_fields()), lambda f: load(f / "survey.json")
    ),
    "survey as CSV": lambda: Reader(
        "own.csv", OWN_CSV, lambda f: read_survey(f / "own.csv"), "text"
    ),
    "shares as CSV": lambda: Reader(
        "shares.csv",
        SHARES_CSV,
        lambda f: read_survey(f / "own.csv", f / "shares.csv"),
        "text",
        {"own.csv": OWN_CSV},
    ),
    "wording": lambda: Reader(
        "words.csv",
        WORDING_CSV,
        lambda f: read_any(f / "wvs.csv", options=SurveyOptions(wording=f / "words.csv")),
        "text",
        {"wvs.csv": WVS_CSV},
    ),
    "World Values Survey": lambda: Reader(
        "wvs.csv", WVS_CSV, lambda f: read_survey(f / "wvs.csv", format="wvs"), "text"
    ),
    "World Values Survey in SPSS": lambda: Reader(
        "wvs.sav", _sav(), lambda f: read_survey(f / "wvs.sav"), "binary"
    ),
    "questions in parquet": lambda: Reader(
        "q.parquet", _parquet(), lambda f: read_any(f / "q.parquet"), "binary"
    ),
    "MMLU": lambda: Reader("mmlu.csv", MMLU_CSV, lambda f: read_any(f / "mmlu.csv"), "text"),
    "CulturalBench": lambda: Reader(
        "bench.csv", BENCH_CSV, lambda f: read_any(f / "bench.csv"), "text"
    ),
    "GlobalOpinionQA": lambda: Reader(
        "goqa.csv", OPINIONS_CSV, lambda f: read_survey(f / "goqa.csv"), "text"
    ),
    "replies, CultureSPA": lambda: Reader(
        "replies.json",
        as_json(CULTURESPA_REPLIES),
        lambda f: read_replies(f / "replies.json", mode="aware"),
    ),
    "replies, lm-evaluation-harness": lambda: Reader(
        "samples.jsonl", as_json(HARNESS), lambda f: read_replies(f / "samples.jsonl")
    ),
    "replies, inspect": lambda: Reader(
        "log.json", as_json(INSPECT), lambda f: read_replies(f / "log.json")
    ),
    "factor scores as JSON": lambda: Reader(
        "care.json", as_json(FACTORS), lambda f: read_factor_scores(f / "care.json")
    ),
    "factor scores as CSV": lambda: Reader(
        "care.csv", FACTORS_CSV, lambda f: read_factor_scores(f / "care.csv"), "text"
    ),
    "country scores": lambda: Reader(
        "scores.csv", SCORES_CSV, lambda f: edition_scores(f / "scores.csv"), "text"
    ),
    "generated questions": lambda: Reader(
        "questions.json",
        as_json([QUESTION]),
        lambda f: read_questions(f / "questions.json"),
        takes=frozenset(["Latin-1", "a list of null"]),
    ),
    "ranking": lambda: Reader(
        "ranks.json",
        as_json({"q1": ["q2"]}),
        lambda f: read_ranking(f / "ranks.json"),
        takes=frozenset(["an empty object"]),
    ),
    "conversations": lambda: Reader(
        "talks.jsonl",
        as_json({"messages": TALK}),
        lambda f: read_conversations(f / "talks.jsonl", pocket().tokenizer, 512),
    ),
    "prompt text": lambda: Reader(
        "persona.jinja",
        b"Answer as someone from {{ country }} would.",
        lambda f: load_prompts(f).system("USA"),
        "text",
        # Any text is one, and without the file the package's stands.
        takes=NO_FILE_IS_FINE
        | {"cut in half", "a web page instead", "git-lfs pointer", "a folder instead"},
    ),
    "sweep": lambda: Reader(
        "sweep.toml",
        SWEEP,
        lambda f: read_sweep(f / "sweep.toml"),
        "text",
        takes=frozenset(["empty", "blank lines alone", "cut in half"]),  # there are defaults
    ),
    "model config": lambda: Reader("config.json", as_json(CONFIG), read_config),
    "tokenizer": lambda: Reader(
        "tokenizer.json",
        pocket_file("tokenizer.json"),
        Tokenizer.load,
        others={n: pocket_file(n) for n in ("config.json", "tokenizer_config.json")},
        says="tokenizer",
    ),
    "tokenizer config": lambda: Reader(
        "tokenizer_config.json",
        pocket_file("tokenizer_config.json"),
        Tokenizer.load,
        others={n: pocket_file(n) for n in ("config.json", "tokenizer.json")},
        says="token",
        takes=frozenset(
            ["one key twice among 40,000", "an empty object", "NaN", "a folder instead"]
        )
        | NO_FILE_IS_FINE,
    ),
    "generation config": lambda: Reader(
        "generation_config.json",
        b'{"eos_token_id": 3}',
        Tokenizer.load,
        others={
            n: pocket_file(n) for n in ("config.json", "tokenizer.json", "tokenizer_config.json")
        },
        takes=frozenset(["an empty object", "NaN", "a folder instead"]) | NO_FILE_IS_FINE,
    ),
    "safetensors": lambda: Reader(
        "model.safetensors",
        tensors(a=np.ones((2, 2), np.float32)),
        lambda f: read_spans(f / "model.safetensors"),
        "binary",
    ),
    "index of safetensors": lambda: Reader(
        "model.safetensors.index.json",
        as_json({"weight_map": {"a": "one.safetensors"}}),
        lambda f: (read_weight_map(f / "model.safetensors.index.json"), find_files(f)),
        others={"one.safetensors": b""},
    ),
    "adapter config": lambda: Reader(
        "adapter_config.json",
        as_json(LORA),
        lambda f: load_lora(f, BASE),
        others={"adapter_model.safetensors": lora_weights()},
    ),
    "adapter": lambda: Reader(
        "adapter_model.safetensors",
        lora_weights(),
        lambda f: load_lora(f, BASE),
        "binary",
        {"adapter_config.json": as_json(LORA)},
    ),
    "soft prompt": lambda: Reader(
        "USA.safetensors",
        _soft_prompt(),
        lambda f: load_prompt(f / "USA.safetensors"),
        "binary",
    ),
    "soft prompt of PEFT": lambda: Reader(
        "adapter_config.json",
        as_json(PROMPT_TUNING),
        load_prompt_tuning,
        others={"adapter_model.safetensors": tensors(prompt_embeddings=np.ones((2, 8), "f4"))},
    ),
    "GGUF": lambda: Reader(
        "model.gguf", _gguf(), lambda f: describe_gguf(f / "model.gguf"), "binary"
    ),
    "run": lambda: Reader(
        "config.json",
        _run_record(),
        lambda f: recorded_run(f),
        says="config.json",
        takes=frozenset(["no such file"]),
    ),
    "run that is resumed": lambda: Reader(
        "config.json",
        _run_record(),
        lambda f: check_run(f, TrainConfig(), resume=True),
        says="`out`",
        takes=frozenset(["no such file"]),
    ),
    "metrics": lambda: Reader(
        "metrics.jsonl",
        METRICS,
        lambda f: MetricsFile(f / "metrics.jsonl", gapless=True).rewind(3),
    ),
    "answers": lambda: Reader(
        "answers.npy",
        rows_file(),
        lambda f: open_partial(f, "answers", 3, 2, "float32"),
        "binary",
        takes=NO_FILE_IS_FINE,
    ),
    "sizes of training steps": lambda: Reader(
        "training/steps.json",
        as_json({"shared": SHAPE, "specific": SHAPE}),
        read_steps,
        takes=NO_FILE_IS_FINE,
    ),
    "models set aside": lambda: Reader(
        "training/set_aside.json",
        as_json({"seed0 joint": {"step": 3, "learning_rate": 0.1}}),
        read_set_aside,
        takes=NO_FILE_IS_FINE | {"an empty object"},
    ),
    "finished run": lambda: Reader(
        "result.json", as_json({"selected": {}, "facts": {}, "settings": {}}), read_finished
    ),
    "status of a sweep": lambda: Reader(
        "status.json",
        as_json({"updated": 0, "cells": 0, "running": 0, "seconds_left": None}),
        show_status,
        others={"config.json": as_json(_RECORD | {"settings": SWEEP_SETTINGS})},
        takes=NO_FILE_IS_FINE - {"a link to itself"},
    ),
}


def _soft_prompt() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        save_prompt(Path(folder) / "USA.safetensors", np.ones((2, 8), np.float32), {})
        return (Path(folder) / "USA.safetensors").read_bytes()


def _run_record() -> bytes:
    return as_json(_RECORD | {"settings": settings_of(TrainConfig())})


@functools.cache
def _sav() -> bytes:
    import pandas
    import pyreadstat

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "wvs.sav"
        table = pandas.read_csv(io.BytesIO(WVS_CSV))
        pyreadstat.write_sav(table, str(path))
        return path.read_bytes()


@functools.cache
def _parquet() -> bytes:
    import pyarrow.csv
    import pyarrow.parquet

    sink = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.csv.read_csv(io.BytesIO(MMLU_CSV)), sink)
    return sink.getvalue()


@functools.cache
def _gguf() -> bytes:
    from tests.support.gguf_files import CONFIG, fields, write
    from tests.support.parity_cases import hf_weights

    with tempfile.TemporaryDirectory() as folder:
        return write(Path(folder) / "model.gguf", fields(), hf_weights(CONFIG)).read_bytes()
