"""Talking side by side: what becomes a column, what is printed where, and how lines are read."""

from __future__ import annotations

import io
import json
import signal
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from jaxalign.cli import run_command
from jaxalign.commands.chat import Config, Screen, answer, messages, open_columns
from jaxalign.core.errors import UserError
from jaxalign.lm.lora import LoraConfig, init_adapter
from jaxalign.lm.model import open_model
from jaxalign.lm.peft import save_lora
from jaxalign.methods.chat import Reply
from jaxalign.methods.soft_prompt import SoftPrompt
from jaxalign.methods.tuned import read_tuned_run

PROMPT = SoftPrompt(np.zeros((3, 128), np.float32), group="USA", model="elsewhere")


@pytest.fixture(scope="module")
def adapter(tmp_path_factory) -> Path:
    """The folder of an adapter for the pocket model."""
    config, lora = open_model().config, LoraConfig(rank=2, targets=("q",))
    path = tmp_path_factory.mktemp("lora") / "joint"
    save_lora(path, init_adapter(config, lora, jax.random.key(0)), config, lora, "pocket")
    return path


@pytest.fixture
def run(tmp_path, adapter) -> Path:
    """A run directory with two prompts and adapters of two seeds."""
    folder = tmp_path / "run"
    for group in ("USA", "CHN"):
        PROMPT.save(folder / "prompts" / f"{group}.safetensors")
    for seed in (0, 1):
        target = folder / f"seed{seed}" / "adapters" / "joint"
        target.mkdir(parents=True)
        for file in adapter.iterdir():
            (target / file.name).write_bytes(file.read_bytes())
    record(folder, {"model": None})
    return folder


def record(folder: Path, settings: dict) -> None:
    fields = {"format": "jaxalign run 1", "settings": settings, "facts": {}, "versions": {}}
    (folder / "config.json").write_text(json.dumps(fields))


def test_every_condition_is_a_column(tmp_path, adapter):
    PROMPT.save(tmp_path / "a" / "USA.safetensors")
    PROMPT.save(tmp_path / "b" / "USA.safetensors")
    PROMPT.save_peft(tmp_path / "peft" / "USA")
    columns = open_columns(
        Config(
            prompt=(
                (str(tmp_path / "a" / "USA.safetensors"), str(tmp_path / "b" / "USA.safetensors")),
                (str(tmp_path / "peft" / "USA"), f"mine={tmp_path / 'peft' / 'USA'}"),
            ),
            adapter=((str(adapter),),),
            persona=(("CHN",),),
        )
    )
    assert list(columns.conditions) == [
        "plain",
        "persona CHN",
        "prompt a/USA",
        "prompt b/USA",
        "prompt peft/USA",
        "prompt mine",
        "adapter joint",
    ]
    assert columns.conditions["adapter joint"].adapter.config.rank == 2
    assert columns.conditions["prompt peft/USA"].soft_prompt.embeddings_MxD.shape == (3, 128)
    assert any("cannot hold a conversation" in note for note in columns.notes)


def test_a_run_brings_its_model_and_what_it_tuned(run):
    columns = open_columns(Config(str(run)))
    tuned = ["prompt CHN", "prompt USA", "adapter seed0/joint", "adapter seed1/joint"]
    assert list(columns.conditions) == ["plain", *tuned]
    chosen = Config(str(run), only=("USA", "seed1/joint"), persona=(("CHN",),), combine=True)
    assert list(open_columns(chosen).conditions) == [
        "plain",
        "persona CHN",
        "prompt USA",
        "adapter seed1/joint",
        "adapter seed1/joint, persona CHN",
        "adapter seed1/joint, prompt USA",
    ]


def test_a_run_of_one_seed_and_one_that_tuned_all_weights(run, tmp_path):
    (run / "seed1").rename(tmp_path / "gone")
    assert "adapter joint" in open_columns(Config(str(run))).conditions
    whole = tmp_path / "whole"
    (whole / "model").mkdir(parents=True)
    record(whole, {"model": None})
    (whole / "model" / "config.json").write_text("{}")
    assert read_tuned_run(whole).model == str(whole / "model")
    assert read_tuned_run(run).model is None


def test_other_weights_are_noted(tmp_path):
    path = tmp_path / "USA.safetensors"
    SoftPrompt(np.zeros((3, 128), np.float32), model="a/b", model_sha256="0").save(path)
    [note, _] = open_columns(Config(prompt=((str(path),),))).notes
    assert note.startswith("prompt USA: tuned for a/b; ")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"only": ("USA",)}, "`only` chooses among what a run has tuned"),
        ({"persona": (("XYZ",),)}, "XYZ"),
        ({"target": "nowhere"}, "nowhere"),
        ({"target": "a", "model": "b"}, "`model` and `target` both name a model"),
        ({"adapter": (("nowhere",),)}, "adapter_config.json: cannot be read"),
        ({"prompt": (("nowhere.safetensors",),)}, "no such file"),
    ],
)
def test_what_cannot_be_talked_to_is_refused(changes, says):
    with pytest.raises(UserError, match=says):
        open_columns(Config(**changes))


def test_what_a_run_cannot_give_is_refused(run, tmp_path):
    with pytest.raises(UserError, match=r"`only` 'IND': .* has CHN, USA, seed0/joint, seed1/joint"):
        open_columns(Config(str(run), only=("IND",)))
    record(run, {"model": str(tmp_path / "moved")})
    with pytest.raises(UserError, match=r"the model of .*moved.*; or name it with `model`"):
        open_columns(Config(str(run)))
    wide = tmp_path / "wide.safetensors"
    SoftPrompt(np.zeros((3, 64), np.float32)).save(wide)
    with pytest.raises(UserError, match="64 wide, the model 128"):
        open_columns(Config(prompt=((str(wide),),)))


def test_a_bad_number_is_one_line_before_anything_is_loaded(capsys):
    with pytest.raises(SystemExit, match="2"):
        run_command("chat", ["--top-p", "2", "--message", "hello"])
    assert capsys.readouterr().err == (
        "error: --top-p 2.0: must be above 0 and at most 1 (all tokens)\n"
    )


# The screen

TEXTS = ["A good life is one of purpose.", "One \x1b[31mof\tjoy,\nand of laughter.", ""]
REPLIES = [Reply(text, 9, complete=text != "") for text in TEXTS]


def drawn(width: int, terminal: bool = True, columns: int = 3) -> tuple[Screen, list[str]]:
    out = io.StringIO()
    console = Console(
        file=out, force_terminal=terminal, width=width, color_system=None, highlight=False
    )
    screen = Screen(["plain", "persona CHN", "prompt [USA]"][:columns], console)
    screen.say("What makes a good life?")
    screen.show(REPLIES[:columns])
    return screen, [line.rstrip() for line in out.getvalue().splitlines()]


def test_side_by_side_where_there_is_room():
    screen, lines = drawn(160)
    assert screen.in_columns
    assert lines[0] == "> What makes a good life?"
    assert lines[1].split() == ["plain", "persona", "CHN", "prompt", "[USA]"]
    assert "purpose." in lines[3]
    assert "One  [31mof joy," in lines[3]  # no escape reaches the terminal
    assert "…" in lines[3]  # the empty one was cut off
    assert "and of laughter." in lines[4]
    assert len({line.index("One") for line in lines if "One" in line}) == 1


@pytest.mark.parametrize(("width", "columns", "beside"), [(80, 2, True), (80, 3, False)])
def test_a_narrow_terminal_stacks_more_than_two(width, columns, beside):
    screen, lines = drawn(width, columns=columns)
    assert screen.in_columns is beside
    assert max(map(len, lines)) <= width
    if not beside:
        assert lines[1:4] == ["plain", "  A good life is one of purpose.", ""]


def test_a_file_gets_whole_lines():
    screen, lines = drawn(20, terminal=False)
    assert not screen.in_columns
    assert lines == [
        "> What makes a good life?",
        "plain:",
        "  A good life is one of purpose.",
        "",
        "persona CHN:",
        "  One  [31mof joy,",
        "  and of laughter.",
        "",
        "prompt [USA]:",
        "  …",
        "",
    ]


# Reading


class Talk:
    """Stands for a chat: keeps what was said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str, on_text: object) -> list[Reply]:
        if text == "too long":
            raise UserError("`max_new_tokens` 9: too long")
        self.said.append(text)
        return [Reply(f"to {text}", 2, True)]

    def reset(self) -> None:
        self.said.append("(reset)")


def test_lines_commands_and_errors(capsys):
    talk = Talk()
    lines = ["hello", "  ", "/help", "/reset", "too long", "again", "/quit", "never said"]
    answer(talk, ["plain"], iter(lines), interactive=True)
    assert talk.said == ["hello", "(reset)", "again"]
    out = capsys.readouterr().out
    assert "/reset forgets what has been said" in out
    assert "--max-new-tokens 9: too long; /reset begins anew" in out
    with pytest.raises(UserError, match="too long"):
        answer(talk, ["plain"], iter(["too long"]))


def test_a_reply_can_be_stopped(capsys, monkeypatch):
    talk = Talk()
    monkeypatch.setattr(talk, "say", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    answer(talk, ["plain"], iter(["hello"]), interactive=True)
    assert "stopped; the message was not kept" in capsys.readouterr().out
    with pytest.raises(KeyboardInterrupt):
        answer(talk, ["plain"], iter(["hello"]))


def test_an_interrupt_while_drawing_comes_after_it():
    """Otherwise the terminal would keep half a drawing, or lose lines above it."""
    out = io.StringIO()
    screen = Screen(["plain"], Console(file=out, force_terminal=True, width=80))
    drawn_whole = []

    class Text(str):
        def __iter__(self):  # in the middle of drawing
            signal.raise_signal(signal.SIGINT)
            drawn_whole.append(True)
            return super().__iter__()

    with pytest.raises(KeyboardInterrupt), screen.watch() as on_text:
        on_text([Text("words")])
    assert drawn_whole == [True]
    assert "words" in out.getvalue()


def test_given_messages_and_piped_lines(monkeypatch):
    assert list(messages(("a", "b"), interactive=False)) == ["a", "b"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\ntwo"))
    assert list(messages((), interactive=False)) == ["one", "two"]


@pytest.mark.long
def test_the_command_talks(capsys, tmp_path, adapter):
    """Two messages are one conversation; an adapter that changes nothing says the same."""
    from jaxalign.pocket import pocket_model

    lm = pocket_model()
    ids = lm.tokenizer.encode("How happy are you?")
    SoftPrompt(np.asarray(jnp.asarray(lm.params["embed"])[jnp.asarray(ids)])).save(
        tmp_path / "happy.safetensors"
    )
    run_command(
        "chat",
        [
            *("--prompt", str(tmp_path / "happy.safetensors"), "--adapter", str(adapter)),
            *("--message", "1 or 2?", "--message", "Why?", "--max-new-tokens", "6"),
        ],
    )
    out = capsys.readouterr().out
    assert [line for line in out.splitlines() if line.startswith(">")] == ["> 1 or 2?", "> Why?"]
    assert out.count("plain:") == out.count("prompt happy:") == out.count("adapter joint:") == 2
    plain, _, adapted = (
        block.split(":\n")[1] for block in out.split("> 1 or 2?\n")[1].split("\n\n")[:3]
    )
    assert plain == adapted  # the adapter is new and changes nothing yet
