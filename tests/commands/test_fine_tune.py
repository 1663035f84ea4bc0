"""The command fine-tune on conversations of one's own: what it writes, and what it refuses."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import jaxalign as ja
from jaxalign.commands.fine_tune import Config, tune
from jaxalign.core.errors import UserError
from jaxalign.lm import model as model_module
from jaxalign.lm.checkpoint import load_checkpoint
from jaxalign.lm.config import read_config
from jaxalign.lm.lora import LoraConfig
from jaxalign.lm.tokenizer import Tokenizer
from jaxalign.pocket import MODEL_FOLDER
from jaxalign.training.conversations import Conversation, hold_out
from jaxalign.training.packing import Example
from jaxalign.training.step import TrainConfig

TEMPLATE = "{% for m in messages %}[{{ m.role }}]{{ m.content }}<|eot_id|>{% endfor %}"


def conversation(question: str, reply: str, role: str = "user") -> str:
    said = [{"role": role, "content": question}, {"role": "assistant", "content": reply}]
    return json.dumps({"messages": said})


@pytest.fixture
def data(tmp_path) -> Path:
    path = tmp_path / "conversations.jsonl"
    path.write_text("\n".join(conversation(f"What is {n}?", str(n)) for n in range(5)), "utf-8-sig")
    return path


@pytest.mark.long
def test_fewer_conversations_than_a_batch_are_trained_on(data, tmp_path, capsys):
    """If the only step were a warm-up, nothing would be trained. Conversations beyond the model's
    context are left out, whatever `longest` is."""
    with data.open("a", encoding="utf-8") as file:
        file.write("\n" + conversation("word " * 5000, "b"))
    tune(Config(data, tmp_path / "out", longest=100_000, data_parallel=1, quiet=True))
    assert "5 conversations, 1 left out for more than 4096 tokens" in capsys.readouterr().out
    (row,) = map(json.loads, (tmp_path / "out" / "metrics.jsonl").read_text().splitlines())
    assert row["joint"]["learning_rate"] == pytest.approx(1e-4)  # the paper's
    adapter = load_file(tmp_path / "out" / "adapter" / "adapter_model.safetensors")
    assert max(np.abs(x).max() for name, x in adapter.items() if "lora_B" in name) > 0


@pytest.mark.long
def test_questions_held_out_are_not_trained_on(tmp_path, capsys):
    """The loss on them is recorded, the first time before training."""
    path = tmp_path / "conversations.jsonl"
    lines = [conversation(f"What is {n}?", str(reply)) for n in range(10) for reply in (n, n + 1)]
    path.write_text("\n".join(lines))
    train = TrainConfig(batch=4, learning_rate=1e-2)
    config = Config(
        path, tmp_path / "out", train=train, held_out_share=0.2, data_parallel=1, quiet=True
    )
    tune(config)
    said = capsys.readouterr().out
    assert "20 conversations, 0 left out" in said
    assert "4 of them are held out" in said
    assert re.search(r"held-out loss \d+\.\d{4} before, \d+\.\d{4} after; lowest", said)
    rows = [json.loads(r) for r in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4]
    assert all(row["joint"]["held_out_loss"] > 0 for row in rows)
    assert (tmp_path / "out" / "loss.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.long
def test_the_command_and_the_function_give_the_same_bits(data, tmp_path):
    """`ja.fine_tune` with the settings and conversations of a run."""
    train, lora = TrainConfig(batch=2, learning_rate=1e-2), LoraConfig(rank=4)
    tune(Config(data, tmp_path / "out", train=train, lora=lora, quiet=True))
    lm = ja.pocket_model()
    lines = data.read_text("utf-8-sig").splitlines()
    talks, rows = [json.loads(line)["messages"] for line in lines], []
    events = []
    adapter = ja.fine_tune(
        lm, talks, train=train, lora=lora, log=rows.append, on_progress=events.append
    )
    adapter.save_peft(tmp_path / "adapter")
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        of_the_run = tmp_path / "out" / "adapter" / name
        assert (tmp_path / "adapter" / name).read_bytes() == of_the_run.read_bytes()
    metrics = tmp_path / "out" / "metrics.jsonl"
    logged = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert [row["joint"]["loss"] for row in logged] == [float(r["joint"]["loss"]) for r in rows]
    assert [(e.done, e.total) for e in events] == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert events[0].task == "step"
    assert events[0].unit == "examples"
    assert events[0].units_per_step == 2
    assert events[-1].fields == {"joint": f"{rows[-1]['joint']['loss']:.3f}"}


@pytest.mark.parametrize("share", [0.3, 0.5])
def test_no_question_is_on_both_sides(share):
    said = [Conversation(f"question {n % 9}", Example((n, n), 1)) for n in range(30)]
    train, apart = hold_out(said, share, seed=1)
    assert sorted(e.tokens for e in train + apart) == [(n, n) for n in range(30)]
    sides = [{e.tokens[0] % 9 for e in side} for side in (train, apart)]
    assert not sides[0] & sides[1]
    assert len(sides[1]) == round(share * 9)
    assert hold_out(said, share, seed=2) != (train, apart)
    assert hold_out(said, 0.0, seed=1) == ([c.example for c in said], [])


def test_a_side_without_a_question_is_refused(data):
    said = [Conversation("one", Example((1, 2), 1))] * 4
    with pytest.raises(UserError, match=r"share 0.4 of 1 different questions holds out 0"):
        hold_out(said, 0.4, seed=0)
    with pytest.raises(UserError, match=r"`held_out_share` 1.0: must be in"):
        Config(data, Path("out"), held_out_share=1.0)


@pytest.mark.long
@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_whole_model_is_spoken_to_as_its_base(data, tmp_path, method, monkeypatch):
    """Its template, its stop tokens and the ids of its special tokens are copied."""
    base, out = tmp_path / "base", tmp_path / "out"
    shutil.copytree(MODEL_FOLDER, base)
    (base / "chat_template.jinja").write_text(TEMPLATE)
    fields = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(fields | {"eos_token_id": 1787}))
    loaded = []

    def load(*arguments):
        loaded.append(load_checkpoint(*arguments))
        return loaded[-1]

    monkeypatch.setattr(model_module, "load_checkpoint", load)
    train = TrainConfig(method=method, learning_rate=1e-2)
    where = {"model": base, "dtype": "float32", "data_parallel": 1}
    tune(Config(data, out, train=train, merge=True, quiet=True, **where))
    assert Tokenizer.load(out / "model").template == TEMPLATE
    written = json.loads((out / "model" / "config.json").read_text())
    assert written["eos_token_id"] == 1787
    for name in ("generation_config.json", "tokenizer.json"):
        assert (out / "model" / name).read_bytes() == (base / name).read_bytes()
    tuned = load_checkpoint(out / "model", read_config(out / "model", "float32"))
    before = load_checkpoint(base, read_config(base, "float32"))
    assert np.abs(np.asarray(tuned["last"]["q"]) - np.asarray(before["last"]["q"])).max() > 1e-4
    freed = [w.is_deleted() for w in jax.tree.leaves(loaded[0])]
    assert all(freed) == (method == "full"), "trained weights are held by the state alone"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (conversation("a \ud83d b", "c"), "line 2: text that is not Unicode: .*ud83d"),
        (conversation("a", "b", role="banana"), "line 2: role 'banana'; one of system, user"),
        ("[" * 100_000, "line 2: not .*nested too deeply"),
        ('{"messages": 5}', "line 2: not "),
    ],
)
def test_a_bad_line_is_named(data, tmp_path, line, words):
    data.write_text(conversation("a", "b") + "\n" + line, "utf-8")
    with pytest.raises(UserError, match=words):
        tune(Config(data, tmp_path / "out", quiet=True))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["save_every", "longest"])
def test_settings_below_one_are_refused(data, name):
    with pytest.raises(UserError, match=rf"`{name}` 0: must be at least 1"):
        Config(data, Path("out"), **{name: 0})
