"""What is wrong in the words of one format: a reader, and the content that it is given instead."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
from safetensors.numpy import save

from tests.bad_inputs import readers as good
from tests.bad_inputs.damage import DEEP, REPEATS

LONG = "x" * 300
HUGE = 10**400


def fields(base: dict[str, Any], **changes: Any) -> bytes:
    """Return an object with some fields replaced; those that are `...` are left out."""
    return good.as_json({k: v for k, v in (base | changes).items() if v is not ...})


def survey(**changes: Any) -> bytes:
    return fields(good.survey_fields(), **changes)


def item(**changes: Any) -> bytes:
    """Return a survey whose first item is changed."""
    whole = good.survey_fields()
    first = {k: v for k, v in (whole["items"][0] | changes).items() if v is not ...}
    return good.as_json(whole | {"items": [first, *whole["items"][1:]]})


def shares(value: Any) -> bytes:
    """Return a survey with something else as the answers to its first item."""
    return survey(distributions={"USA": {"q1": value, "q2": [0.25, 0.75]}})


def lines(*rows: str) -> bytes:
    return ("\n".join(rows) + "\n").encode()


def header(fields: Any, data: bytes = bytes(16), length: int | None = None) -> bytes:
    """Return a safetensors file with a header of our own."""
    text = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(**changes: Any) -> bytes:
    return header({"a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]} | changes})


def rope(**changes: Any) -> bytes:
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    return fields(good.CONFIG, rope_parameters=..., rope_scaling=scaling | changes)


def lora(**changes: Any) -> bytes:
    return fields(good.LORA, **changes)


def changed_lora(change: Any) -> bytes:
    """Return the adapter with its first tensor changed."""
    from safetensors.numpy import load

    tensors = load(good.lora_weights())
    name = sorted(tensors)[0]
    return save(tensors | {name: change(tensors[name])})


def sweep(line: str) -> bytes:
    return good.SWEEP.replace(b"generations = 3", line.encode())


def persona(text: str) -> bytes:
    return text.encode()


def talk(*messages: Any) -> bytes:
    return good.as_json({"messages": list(messages)})


def npy(header: bytes) -> bytes:
    """Return an array's file with a header of our own."""
    return b"\x93NUMPY\x02\x00" + struct.pack("<I", len(header) + 1) + header + b"\n" + bytes(64)


def with_nul(text: bytes, at: bytes) -> bytes:
    return text.replace(at, at + b"\0", 1)


USER, ASSISTANT = good.TALK
ROUND = [0.5, 0.5]

SPECIAL: dict[str, dict[str, bytes]] = {
    "survey as JSON": {
        "no items": survey(items=[]),
        "items that are a number": survey(items=3),
        "an item that is a list": survey(items=[[]]),
        "no wording": survey(wording=...),
        "an unknown wording": survey(wording="by ear"),
        "a name of 300 characters that is a number": survey(name=1),
        "an unknown field of 300 characters": survey(**{LONG: 1}),
        "one id twice": item(id="q2"),
        "an empty id": item(id=""),
        "an empty question": item(text=" "),
        "one option": item(options=["no"], codes=[1]),
        "fewer codes than options": item(codes=[1]),
        "one code twice": item(codes=[1, 1]),
        "a code that is text": item(codes=["1", "2"]),
        "a code of 400 digits": item(codes=[1, HUGE]),
        "a code that is true": item(codes=[True, 2]),
        "codes that go up and down": item(options=["a", "b", "c"], codes=[1, 3, 2]),
        "an option that is null": item(options=["no", None]),
        "an option twice": item(options=["no", "no"]),
        "an unknown scale": item(scale="cubic"),
        "shares that sum to 2": shares([1.0, 1.0]),
        "a negative share": shares([-0.5, 1.5]),
        "a share that is text": shares(["half", "half"]),
        "a share too many": shares([0.5, 0.25, 0.25]),
        "shares that are NaN": shares([float("nan"), 1.0]),
        "shares that are infinite": shares([float("inf"), 0.0]),
        "shares of an item that is not there": survey(distributions={"USA": {"q9": ROUND}}),
        "a group without a name": survey(distributions={"": {"q1": ROUND}}),
        "half of a character": b'{"name": "\\ud800"}' + survey()[:0],
    },
    "survey as CSV": {
        "no column text": lines("id,options", "q1,1=no|2=yes"),
        "a header alone": lines("id,text,options"),
        "a row too short": lines("id,text,options", "q1,Is it so?"),
        "a row too long": lines("id,text,options", "q1,Is it so?,1=no|2=yes,more,and,more"),
        "a column twice": lines("id,text,text,options", "q1,a,b,1=no|2=yes"),
        "an id twice": lines("id,text,options", *["q1,Is it so?,1=no|2=yes"] * 2),
        "an option without a code": lines("id,text,options", "q1,Is it so?,no|yes|1="),
        "one option": lines("id,text,options", "q1,Is it so?,1=no"),
        "a code that is text": lines("id,text,options", "q1,Is it so?,one=no|two=yes"),
        "a code of 5,000 digits": lines("id,text,options", f"q1,Is it so?,{'1' * 5000}=no|2=yes"),
        "a quotation mark that does not end": lines("id,text,options", 'q1,"Is it so?,1=no|2=yes'),
        "a NUL byte in a cell": with_nul(good.OWN_CSV, b"Is one"),
        "a cell of 200,000 characters that does not end": b'id,text,options\nq1,"' + b"x" * 200_000,
    },
    "shares as CSV": {
        "no column share": lines("country,item,code", "USA,q1,1"),
        "an unknown item": lines("country,item,code,share", "USA,q9,1,1"),
        "an unknown code": lines("country,item,code,share", "USA,q1,7,1"),
        "a share that is text": lines("country,item,code,share", "USA,q1,1,most"),
        "a share that is NaN": lines("country,item,code,share", "USA,q1,1,nan", "USA,q1,2,1"),
        "a share below zero": lines("country,item,code,share", "USA,q1,1,-1", "USA,q1,2,2"),
        "shares that sum to 0.6": lines("country,item,code,share", "USA,q1,1,.3", "USA,q1,2,.3"),
        "a share twice": lines("country,item,code,share", *["USA,q1,1,0.5"] * 2),
        "no country": lines("country,item,code,share", ",q1,1,1"),
        "a decimal comma": lines("country,item,code,share", '"USA","q1",1,"0,5"'),
    },
    "World Values Survey": {
        "no countries": lines("W_WEIGHT,Q1", "1,2"),
        "no questions": lines("B_COUNTRY_ALPHA,W_WEIGHT", "USA,1"),
        "a weight that is text": good.WVS_CSV.replace(b"USA,1,", b"USA,heavy,", 1),
        "a weight below zero": good.WVS_CSV.replace(b"USA,1,", b"USA,-1,", 1),
        "a weight that is infinite": good.WVS_CSV.replace(b"USA,1,", b"USA,inf,", 1),
        "an answer that is text": good.WVS_CSV.replace(b"USA,1,2", b"USA,1,two", 1),
        "rows of several lengths": good.WVS_CSV + b"USA,1\n",
        "a NUL byte in a cell": with_nul(good.WVS_CSV, b"USA"),
    },
    "MMLU": {
        "an answer beyond the options": good.MMLU_CSV.replace(b",C\n", b",F\n"),
        "no answer": good.MMLU_CSV.replace(b",C\n", b",\n"),
        "no question": good.MMLU_CSV.replace(b"Which is even?", b""),
        "a NUL byte in a cell": with_nul(good.MMLU_CSV, b"even"),
    },
    "CulturalBench": {
        "an answer beyond the options": good.BENCH_CSV.replace(b",A,Peru", b",E,Peru"),
        "no question": good.BENCH_CSV.replace(b"Which city is the capital of Peru?", b""),
        "no country": good.BENCH_CSV.replace(b",A,Peru", b",A,"),
    },
    "GlobalOpinionQA": {
        "code in the cell": good.OPINIONS_CSV.replace(b"{'China'", b"{__import__('os').getcwd()"),
        "selections nested 10,000 deep": good.OPINIONS_CSV.replace(
            b"[0.5, 0.5]", b"[" * 10_000 + b"]" * 10_000
        ),
        "fewer shares than options": good.OPINIONS_CSV.replace(b"[0.5, 0.5]", b"[1.0]"),
        "shares that are text": good.OPINIONS_CSV.replace(b"[0.5, 0.5]", b"['a', 'b']"),
        "options that are a number": good.OPINIONS_CSV.replace(b"['yes', 'no']", b"7"),
    },
    "replies, CultureSPA": {
        "no question": good.as_json([{"country": "USA", "answer": "1"}]),
        "an answer that is a list": good.as_json([{"Q_id": "q1", "country": "USA", "answer": []}]),
        "one item twice": good.as_json(good.CULTURESPA_REPLIES * 2),
        "no country": good.as_json([{"Q_id": "q1", "answer": "1"}]),
        "no replies": b"[]",
    },
    "replies, lm-evaluation-harness": {
        "no replies": fields(good.HARNESS, resps=[]),
        "replies that are a number": fields(good.HARNESS, resps=7),
        "no document": fields(good.HARNESS, doc=...),
        "an unknown mode": fields(good.HARNESS, doc={"Q_id": "q1", "mode": "asleep"}),
        "a line that is no object": b"7\n" + good.as_json(good.HARNESS),
    },
    "replies, inspect": {
        "no samples": fields(good.INSPECT, samples=[]),
        "samples of null": fields(good.INSPECT, samples=[None]),
        "no output": fields(good.INSPECT, samples=[{"id": 1}]),
        "scores alone": good.as_json({"status": "error", "eval": {}}),
    },
    "factor scores as JSON": {
        "no factors": fields(good.FACTORS, factors={}),
        "a weight that is text": fields(good.FACTORS, factors={"care": {"items": {"m05": "big"}}}),
        "a weight that is infinite": fields(
            good.FACTORS, factors={"care": {"items": {"m05": float("inf")}}}
        ),
        "a target of a factor that is not there": fields(
            good.FACTORS, targets={"USA": {"envy": 1}}
        ),
        "an unknown field": fields(good.FACTORS, **{LONG: 1}),
        "centred that is text": fields(good.FACTORS, centred="yes"),
    },
    "factor scores as CSV": {
        "a weight that is text": lines("factor,item,weight,group,target", "care,m05,big,,"),
        "a factor without a name": lines("factor,item,weight,group,target", ",m05,1,,"),
        "a row of both kinds": lines("factor,item,weight,group,target", "care,m05,1,USA,2"),
        "a row of no kind": lines("factor,item,weight,group,target", "care,,,,"),
        "a target that is NaN": good.FACTORS_CSV.replace(b"0.3", b"nan"),
    },
    "country scores": {
        "no group": lines("group,pdi,idv,mas,uai,lto,ivr", ",40,91,62,46,26,68"),
        "a group twice": good.SCORES_CSV + good.SCORES_CSV.split(b"\n")[1] + b"\n",
        "a score that is text": good.SCORES_CSV.replace(b"91", b"high"),
        "a score that is infinite": good.SCORES_CSV.replace(b"91", b"inf"),
        "a column that is misspelt": good.SCORES_CSV.replace(b"idv", b"ivd"),
    },
    "ranking": {
        "ranks that are a text": good.as_json({"q1": "q2"}),
        "an id that is a number": good.as_json({"q1": [2]}),
        "CSV without a column": lines("item", "q1"),
    },
    "conversations": {
        "no messages": b'{"messages": []}',
        "the user comes last": talk(USER),
        "an unknown role": talk(USER, {"role": "oracle", "content": "2"}),
        "no content": talk(USER, {"role": "assistant"}),
        "content that is a number": talk(USER, {"role": "assistant", "content": 2}),
        "an empty reply": talk(USER, {"role": "assistant", "content": ""}),
        "messages that are a text": b'{"messages": "hello"}',
        "half of a character": b'{"messages": [{"role": "user", "content": "\\ud800"}, '
        b'{"role": "assistant", "content": "\\udfff"}]}',
    },
    "prompt text": {
        "a tag that does not end": persona("You are {{ country"),
        "an unknown name": persona("You are {{ secret }}."),
        "a file of the machine": persona("{% include '/etc/passwd' %}"),
        "another template": persona("{% extends 'base' %}"),
        "Python's internals": persona("{{ ''.__class__.__mro__[1].__subclasses__() }}"),
        "internals by a filter": persona("{{ country|attr('__class__') }}{{ cycler.__init__ }}"),
        "a loop of a billion": persona("{% for i in range(10**9) %}{{ i }}{% endfor %}"),
        "loops in loops": persona(
            "{% for a in range(9**4) %}{% for b in range(9**4) %}x{% endfor %}{% endfor %}"
        ),
        "a macro that calls itself": persona("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}"),
        "text that doubles": persona(
            "{% set ns = namespace(x='ab') %}{% for i in range(60) %}"
            "{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}"
        ),
        "a power": persona("{{ 9 ** (9 ** 9) }}"),
        "a wide field": persona("{{ '%999999999s' % country }}"),
        "a text times a billion": persona("{{ country * 10**9 }}"),
        "division by zero": persona("{{ 1 // 0 }}"),
        "nested 5,000 deep": persona("{{ " + "(" * 5_000 + "1" + ")" * 5_000 + " }}"),
        "ifs nested 500 deep": persona("{% if 1 %}" * 500 + "x" + "{% endif %}" * 500),
        "nothing but a comment": persona("{# nothing #}"),
    },
    "sweep": {
        "no countries": sweep("countries = []"),
        "a key of 300 characters": sweep(f"{LONG} = 1"),
        "a key twice": sweep("seeds = [1]\nseeds = [2]"),
        "a seed below zero": good.SWEEP.replace(b"[3, 8]", b"[-1]"),
        "a seed that is text": good.SWEEP.replace(b"[3, 8]", b'["three"]'),
        "a seed twice": good.SWEEP.replace(b"[3, 8]", b"[3, 3]"),
        "a seed of 400 digits": good.SWEEP.replace(b"[3, 8]", f"[{HUGE}]".encode()),
        "generations that are NaN": sweep("generations = nan"),
        "a length that is text": good.SWEEP.replace(b"lengths = [2]", b'lengths = ["2"]'),
        "a population that is text": good.SWEEP.replace(b"= 8", b'= "8"'),
        "a strategy that is a number": good.SWEEP.replace(
            b"[[strategies]]", b"strategies = 7\n[x]"
        ),
        "arrays nested 10,000 deep": sweep("x = " + "[" * 10_000 + "]" * 10_000),
    },
    "model config": {
        "no size": fields(good.CONFIG, hidden_size=...),
        "a size below zero": fields(good.CONFIG, hidden_size=-8),
        "a size that is text": fields(good.CONFIG, num_hidden_layers="three"),
        "a size that is true": fields(good.CONFIG, vocab_size=True),
        "a size that is 2.5": fields(good.CONFIG, intermediate_size=2.5),
        "one layer": fields(good.CONFIG, num_hidden_layers=1),
        "heads that do not divide": fields(good.CONFIG, num_key_value_heads=4),
        "an odd head": fields(good.CONFIG, head_dim=7),
        "another model": fields(good.CONFIG, model_type="mamba"),
        "an unknown field of 300 characters": fields(good.CONFIG, **{LONG: LONG * 100}),
        "another activation": fields(good.CONFIG, hidden_act="gelu"),
        "layers of other kinds": fields(good.CONFIG, layer_types=[["full_attention"], {}]),
        "layers that are a number": fields(good.CONFIG, layer_types=7),
        "an epsilon that is NaN": fields(good.CONFIG, rms_norm_eps=float("nan")),
        "a RoPE base of zero": fields(good.CONFIG, rope_parameters=..., rope_theta=0),
        "a RoPE base that is text": fields(good.CONFIG, rope_parameters=..., rope_theta="big"),
        "RoPE that is a list": fields(good.CONFIG, rope_parameters=[1]),
        "two RoPE bases": fields(good.CONFIG, rope_theta=1.0),
        "an unknown RoPE rule": rope(rope_type="yarn"),
        "a RoPE rule that is a list": rope(rope_type=["llama3"]),
        "a RoPE factor of zero": rope(factor=0),
        "a RoPE factor below one": rope(factor=0.5),
        "a RoPE factor that is text": rope(factor="8"),
        "a RoPE factor that is infinite": rope(factor=float("inf")),
        "RoPE frequencies that are equal": rope(low_freq_factor=4.0),
        "RoPE frequencies the wrong way": rope(low_freq_factor=4.0, high_freq_factor=1.0),
        "a RoPE length below zero": rope(original_max_position_embeddings=-1),
        "a RoPE length of 8192.5": rope(original_max_position_embeddings=8192.5),
        "a RoPE field too many": rope(attention_factor=1.0),
        "a RoPE field too few": fields(
            good.CONFIG, rope_parameters={"rope_type": "llama3", "factor": 8.0}
        ),
    },
    "generation config": {
        "a stop that is text": b'{"eos_token_id": "</s>"}',
        "a stop below zero": b'{"eos_token_id": -1}',
        "a stop that is true": b'{"eos_token_id": [true]}',
    },
    "tokenizer": {
        "another kind of file": b'{"version": "1.0", "model": {"type": "Magic"}}',
        "a vocabulary that is a list": b'{"version": "1.0", "model": {"type": "BPE", "vocab": []}}',
    },
    "safetensors": {
        "a header of 2^63 bytes": header({}, length=2**63),
        "a header longer than the file": header({}, length=10_000),
        "a header of no length": header(b"", length=0),
        "a header that is a list": header([]),
        "a header nested 100,000 deep": header(b"[" * DEEP + b"]" * DEEP),
        "a tensor twice among 40,000": header(
            b"{" + b",".join(b'"t%d":0' % (i % (REPEATS - 1)) for i in range(REPEATS)) + b"}"
        ),
        "a tensor that is a number": header({"a": 7}),
        "offsets below zero": tensor(data_offsets=[-16, 0]),
        "offsets the wrong way": tensor(data_offsets=[16, 0]),
        "offsets that are texts": tensor(data_offsets=["0", "16"]),
        "three offsets": tensor(data_offsets=[0, 8, 16]),
        "offsets past the end": tensor(data_offsets=[0, 2**62], shape=[2**60]),
        "a shape below zero": tensor(shape=[-2, -2]),
        "a shape that is a number": tensor(shape=4),
        "a shape of 2^80": tensor(shape=[2**40, 2**40]),
        "bytes that are too few for the shape": tensor(shape=[2, 3]),
        "no dtype": header({"a": {"shape": [4], "data_offsets": [0, 16]}}),
    },
    "index of safetensors": {
        "a path out of the folder": good.as_json({"weight_map": {"a": "../../etc/passwd"}}),
        "an absolute path": good.as_json({"weight_map": {"a": "/etc/passwd"}}),
        "a file that is a number": good.as_json({"weight_map": {"a": 7}}),
        "a file that is not there": good.as_json({"weight_map": {"a": "two.safetensors"}}),
        "a map that is a list": good.as_json({"weight_map": []}),
    },
    "adapter config": {
        "a rank of zero": lora(r=0),
        "a rank that is text": lora(r="two"),
        "a rank of 400 digits": lora(r=HUGE),
        "a scale that is NaN": lora(lora_alpha=float("nan")),
        "a scale that is null": lora(lora_alpha=None),
        "no layers": lora(target_modules=[]),
        "unknown layers": lora(target_modules=["router"]),
        "layers by a pattern that is none": lora(target_modules="(("),
        "layers by a pattern that takes for ever": lora(target_modules="(.*.*.*.*.*.*.*.*)*\\d"),
        "ranks by a pattern that is none": lora(rank_pattern={"((": 2}),
        "ranks that are texts": lora(rank_pattern={"q_proj": "two"}),
        "another kind of adapter": lora(peft_type="IA3"),
        "a variant that is not computed": lora(use_dora=True),
        "layers that are a number": lora(target_modules=7),
        "layers left out that are a number": lora(exclude_modules=7),
        "layers that are null": lora(target_modules=[None]),
        "layers to change that are texts": lora(layers_to_transform=["0"]),
        "copies that are a number": lora(modules_to_save=7),
    },
    "adapter": {
        "another rank": changed_lora(lambda x: np.ones((3, x.shape[1]), np.float32)),
        "whole numbers": changed_lora(lambda x: x.astype(np.int32)),
        "NaN": changed_lora(lambda x: x * np.float32("nan")),
        "infinite half floats": changed_lora(lambda x: np.full(x.shape, np.inf, np.float16)),
        "a tensor too many": save({"extra": np.ones(2, np.float32)}),
        "a header of 2^63 bytes": header({}, length=2**63),
        "offsets below zero": tensor(data_offsets=[-16, 0]),
    },
    "soft prompt": {
        "three axes": save({"prompt": np.ones((1, 2, 8), np.float32)}),
        "no tokens": save({"prompt": np.ones((0, 8), np.float32)}),
        "NaN": save({"prompt": np.full((2, 8), np.nan, np.float32)}),
        "infinite half floats": save({"prompt": np.full((2, 8), np.inf, np.float16)}),
        "no metadata": save({"prompt": np.ones((2, 8), np.float32)}),
        "metadata nested deep": save(
            {"prompt": np.ones((2, 8), np.float32)}, metadata={"jaxalign": "[" * DEEP}
        ),
    },
    "soft prompt of PEFT": {
        "another length": fields(good.PROMPT_TUNING, num_virtual_tokens=3),
        "another width": fields(good.PROMPT_TUNING, token_dim=9),
        "an encoder and a decoder": fields(good.PROMPT_TUNING, num_transformer_submodules=2),
        "no kind": fields(good.PROMPT_TUNING, peft_type=...),
    },
    "GGUF": {
        "the name alone": b"GGUF",
        "a version of the future": b"GGUF" + struct.pack("<IQQ", 99, 0, 0),
        "2^62 tensors": b"GGUF" + struct.pack("<IQQ", 3, 2**62, 0),
        "2^62 fields": b"GGUF" + struct.pack("<IQQ", 3, 0, 2**62),
        "a name of 2^62 bytes": b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**62) + b"name",
        "nothing in it": b"GGUF" + struct.pack("<IQQ", 3, 0, 0),
        "big-endian": b"GGUF" + struct.pack(">IQQ", 3, 1, 1),
    },
    "run": {
        "another format": good.as_json({"format": 99, "settings": {}, "facts": {}, "versions": {}}),
        "settings that are a list": good.as_json(
            {"format": good.FORMAT, "settings": [], "facts": {}, "versions": {}}
        ),
    },
    "run that is resumed": {
        "settings of another program": good.as_json(
            {"format": good.FORMAT, "settings": {"a": 1}, "facts": {}, "versions": {}}
        ),
    },
    "metrics": {
        "a row too few": b"".join(good.METRICS.splitlines(keepends=True)[:3]),
        "a row twice": good.METRICS.splitlines(keepends=True)[0] + good.METRICS,
        "a row in the middle that is none": good.METRICS.replace(b'{"generation": 1', b"{", 1),
        "a generation that is text": good.METRICS.replace(b": 1,", b': "one",', 1),
        "a generation that is true": good.METRICS.replace(b": 1,", b": true,", 1),
        "a row that is nested deep": b"[" * DEEP + b"]" * DEEP + b"\n" + good.METRICS,
    },
    "answers": {
        "objects": npy(b"{'descr': '|O', 'fortran_order': False, 'shape': (3,), }"),
        "a header that is code": npy(b"__import__('os').getcwd()"),
        "a header nested deep": npy(b"(" * 5_000 + b")" * 5_000),
        "2^60 rows": good.rows_file().replace(b"(3,)", b"(9999999999,)"),
    },
    "sizes of training steps": {
        "a size that is text": good.as_json(
            {"shared": good.SHAPE | {"rows": "many"}, "specific": good.SHAPE}
        ),
        "a size too many": good.as_json(
            {"shared": good.SHAPE | {"more": 1}, "specific": good.SHAPE}
        ),
    },
    "status of a sweep": {"some of it": b'{"updated": 0}'},
}
