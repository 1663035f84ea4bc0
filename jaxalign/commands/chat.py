"""Talk to a model plain and under tuned prompts, adapters and personas, all replies side by side.

    jaxalign chat                                       # the pocket Llama
    jaxalign chat smollm2 --persona CHN USA
    jaxalign chat runs/tuned                            # a run: its model and all it has tuned
    jaxalign chat path/to/Llama --prompt prompts/USA.safetensors --adapter adapters/joint \\
        --message "What makes a good life?" --message "Why?"

Every column keeps a conversation of its own. Lines are read until end of file (Ctrl-D); piped text
is read line by line, and --message answers and leaves. /reset forgets what has been said, /quit
leaves. Weights are loaded once; columns with the same weights are decoded together.
"""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import sys
import threading
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import jax
import tyro

from jaxalign.core.errors import UserError
from jaxalign.core.streams import drawing_stream
from jaxalign.lm.config import DType
from jaxalign.lm.model import ModelFiles, load_model, open_model
from jaxalign.lm.sampling import Sampling
from jaxalign.lm.weights import WeightFormat
from jaxalign.methods.base import Condition
from jaxalign.methods.chat import Chat, OnText, Reply
from jaxalign.methods.conditions import Persona, Plain, WithAdapter
from jaxalign.methods.tuned import (
    TunedRun,
    load_adapters_by_name,
    load_prompts_by_name,
    named_paths,
    other_model,
    read_tuned_run,
)
from jaxalign.prompts import Prompts, load_prompts
from jaxalign.runs import with_flags

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

_NARROWEST = 32  # characters of a column; with less room replies stand below each other
_HELP = "/reset forgets what has been said, /quit leaves; anything else is said to the model"


@dataclasses.dataclass(frozen=True)
class Config:
    """Talk to a model plain and under tuned prompts, adapters and personas, side by side."""

    target: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[MODEL|RUN]")] = None
    """Model: a Hugging Face folder, a GGUF file of a Llama, a hub id or smollm2; or the directory
    of a run, which brings its model and all the prompts and adapters it has tuned; default: the
    pocket model that ships with the package."""
    prompt: tyro.conf.UseAppendAction[tuple[tuple[str, ...], ...]] = ()
    """Soft prompts: safetensors files of this package or folders of PEFT; NAME=FILE names one."""
    adapter: tyro.conf.UseAppendAction[tuple[tuple[str, ...], ...]] = ()
    """Folders of low-rank adapters, ours or PEFT's; NAME=FOLDER names one."""
    persona: tyro.conf.UseAppendAction[tuple[tuple[str, ...], ...]] = ()
    """ISO 3166 codes of countries to answer as a person of, such as CHN."""
    message: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Message to say instead of reading lines; may be repeated, for a conversation."""
    only: tuple[str, ...] = ()
    """Names of the run's prompts and adapters to talk to; default: all of them."""
    combine: bool = False
    """Whether every adapter also gets a column with each persona and each prompt, as models of
    CultureSPA are meant to be asked."""
    model: str | None = None
    """Model to use instead of the one that the run recorded."""
    prompts: Path | None = None
    """Folder with your own persona.jinja; default: the run's, else the package's."""
    language: str = "en"
    """Language of the persona lines and of the country names in them: en or zh, or the code of any
    other together with texts of your own."""
    temperature: float = 0.0
    """Divisor of the logits; 0 always takes the most likely token."""
    top_p: float = 1.0
    """Sample only from the fewest most likely tokens whose probabilities reach this sum."""
    max_new_tokens: int = 256
    """Largest number of tokens of a reply."""
    seed: int = 0
    """Seed of what is drawn; the same for all columns."""
    dtype: DType | Literal["auto"] = "auto"
    """Dtype of weights and activations; auto: float32 for the pocket model, bfloat16 for others."""
    weights: WeightFormat = "stored"
    """Storage of the linear layers; int8 halves their memory."""
    model_parallel: int | None = None
    """Devices that share one copy of the weights; default: as few as memory allows."""

    @property
    def sampling(self) -> Sampling:
        """How tokens are drawn."""
        return Sampling(self.max_new_tokens, self.temperature, self.top_p)


@dataclasses.dataclass(frozen=True)
class Columns:
    """What is talked to.

    Attributes:
        files: The model's files.
        conditions: Condition of each column, by its heading.
        prompts: The texts that word personas.
        notes: Lines worth showing the user.
    """

    files: ModelFiles
    conditions: dict[str, Condition]
    prompts: Prompts
    notes: tuple[str, ...] = ()


def chat(config: Config) -> None:
    """Run the command: load, then read messages and print replies until there are no more."""
    if jax.process_count() > 1:
        raise UserError("a chat runs in one process: start it on one host")
    columns, sampling = open_columns(config), config.sampling  # read before long work starts
    for note in columns.notes:
        print(with_flags(note, Config))
    lm = load_model(columns.files, weights=config.weights, model_parallel=config.model_parallel)
    print(f"model {lm.name}; columns: {', '.join(columns.conditions)}")
    talk = Chat(lm, list(columns.conditions.values()), sampling, config.seed, columns.prompts)
    interactive = not config.message and sys.stdin.isatty() and sys.stdout.isatty()
    if interactive:
        print(_HELP)
    answer(talk, list(columns.conditions), messages(config.message, interactive), interactive)


def open_columns(config: Config) -> Columns:
    """Read what the settings name, everything but the weights.

    Raises:
        UserError: If the model, a prompt, an adapter or a country cannot be used.
    """
    run = None if config.target is None else read_tuned_run(config.target)
    if run is None and config.only:
        raise UserError("`only` chooses among what a run has tuned; give its directory")
    if run is None and config.model is not None and config.target is not None:
        raise UserError("`model` and `target` both name a model; give one of them")
    model = config.model or (config.target if run is None else run.model)
    try:
        files = open_model(model, config.dtype)
    except UserError as error:
        if run is None or config.model is not None:
            raise
        raise UserError(f"the model of {run.folder}: {error}; or name it with `model`") from None
    # An option may be repeated, and takes several values each time.
    prompt_paths = named_paths([text for texts in config.prompt for text in texts])
    adapter_paths = named_paths([text for texts in config.adapter for text in texts])
    countries = [code for codes in config.persona for code in codes]
    if run is not None:
        chosen = _chosen(run, config.only)
        prompt_paths = {n: p for n, p in run.prompts.items() if n in chosen} | prompt_paths
        adapter_paths = {n: p for n, p in run.adapters.items() if n in chosen} | adapter_paths
    soft = load_prompts_by_name(prompt_paths, files)
    adapters = load_adapters_by_name(adapter_paths, files)
    own_texts = config.prompts or _texts_of(run)
    prompts = load_prompts(own_texts, language=config.language, model_folder=files.folder)
    unadapted: dict[str, Condition] = {f"persona {code}": Persona(code) for code in countries}
    unadapted |= {f"prompt {name}": prompt for name, prompt in soft.items()}
    conditions: dict[str, Condition] = {"plain": Plain()} | unadapted
    for name, adapter in adapters.items():
        conditions[f"adapter {name}"] = WithAdapter(adapter)
        if config.combine:
            for other, condition in unadapted.items():
                conditions[f"adapter {name}, {other}"] = WithAdapter(adapter, condition)
    for condition in conditions.values():
        condition.lead_in(prompts)  # refuses an unknown country
    notes = [f"prompt {n}: {note}" for n, p in soft.items() if (note := other_model(p, files))]
    if files.is_pocket:
        notes.append(
            "the pocket model has only learned to answer survey questions with a number; it cannot "
            "hold a conversation (smollm2 can)"
        )
    if run is not None and not run.prompts and not run.adapters:
        notes.append(f"{run.folder}: this run has saved no prompt and no adapter")
    if len(adapters) > 12 and not config.only:
        notes.append(f"{len(adapters)} adapters; `only` chooses some of them by name")
    return Columns(files, conditions, prompts, tuple(notes))


def _chosen(run: TunedRun, only: Sequence[str]) -> set[str]:
    """Return the names to talk to; UserError for one that the run does not have."""
    there = [*run.prompts, *run.adapters]
    if unknown := [name for name in only if name not in there]:
        raise UserError(f"`only` {unknown[0]!r}: {run.folder} has {', '.join(there) or 'nothing'}")
    return set(only or there)


def _texts_of(run: TunedRun | None) -> Path | None:
    """Return the folder of own texts that a run was given, if it is still there."""
    folder = None if run is None else run.settings.get("prompts")
    return Path(folder) if isinstance(folder, str) and Path(folder).is_dir() else None


def messages(given: Sequence[str], interactive: bool) -> Iterator[str]:
    """Yield what the user says: the given messages, or lines of standard input."""
    if given:
        yield from given
        return
    if not interactive:
        yield from (line.rstrip("\n") for line in sys.stdin)
        return
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  gives `input` its editing and history
    while True:
        try:
            yield input("> ")
        except EOFError:
            print()
            return


def answer(
    talk: Chat, labels: Sequence[str], said: Iterator[str], interactive: bool = False
) -> None:
    """Print the replies to each message; messages that begin with / are commands."""
    screen = Screen(labels)
    for text in map(str.strip, said):
        if not text:
            continue
        if text == "/quit":
            return
        if text == "/reset":
            talk.reset()
            print("the conversation begins anew")
            continue
        if text.startswith("/"):
            print(_HELP)
            continue
        if not interactive:
            screen.say(text)
        try:
            with screen.watch() as on_text:
                replies = talk.say(text, on_text)
            screen.show(replies)
        except UserError as error:
            if not interactive:
                raise
            print(f"{with_flags(str(error), Config)}; /reset begins anew")
        except KeyboardInterrupt:
            if not interactive:
                raise
            signal.setitimer(signal.ITIMER_REAL, 0.0)  # Ctrl-C is repeated until it is heard
            print("stopped; the message was not kept")


class Screen:
    """Shows replies in columns where a terminal has room for them, else below each other.

    Args:
        labels: Headings of the columns.
        console: Where to draw; default: standard output.
    """

    def __init__(self, labels: Sequence[str], console: Console | None = None) -> None:
        from rich.console import Console

        self._labels = labels
        self._console = console or Console(
            file=drawing_stream(), highlight=False, markup=False, emoji=False
        )

    @property
    def in_columns(self) -> bool:
        """Whether replies stand side by side."""
        room = self._console.width // len(self._labels)
        return self._console.is_terminal and len(self._labels) > 1 and room >= _NARROWEST

    def say(self, text: str) -> None:
        """Print the user's message."""
        self._console.print(f"> {_visible(text)}", soft_wrap=not self._console.is_terminal)

    def show(self, replies: Sequence[Reply]) -> None:
        """Print finished replies; one that was cut off ends in an ellipsis."""
        texts = [reply.text + ("" if reply.complete else " …") for reply in replies]
        wrap = not self._console.is_terminal  # a file keeps lines whole
        self._console.print(self._draw(texts), soft_wrap=wrap)

    @contextlib.contextmanager
    def watch(self) -> Iterator[OnText | None]:
        """Yield a callback that draws replies while they are written; None without a terminal."""
        if not self._console.is_terminal:
            yield None
            return
        from rich.live import Live

        with Live(console=self._console, transient=True, auto_refresh=False) as live:

            def show(texts: Sequence[str]) -> None:
                with _interrupts_later():  # half a drawing would not be cleared
                    live.update(self._draw(texts), refresh=True)

            show([""] * len(self._labels))
            yield show

    def _draw(self, texts: Sequence[str]) -> RenderableType:
        return self._side_by_side(texts) if self.in_columns else self._stacked(texts)

    def _side_by_side(self, texts: Sequence[str]) -> RenderableType:
        import rich.box
        from rich.table import Table
        from rich.text import Text

        table = Table(box=rich.box.SIMPLE_HEAD, expand=True, padding=(0, 1), show_edge=False)
        for label in self._labels:
            table.add_column(Text(label), ratio=1, overflow="fold")
        table.add_row(*(Text(_visible(text)) for text in texts))
        return table

    def _stacked(self, texts: Sequence[str]) -> RenderableType:
        from rich.console import Group
        from rich.padding import Padding
        from rich.text import Text

        parts: list[RenderableType] = []
        for label, text in zip(self._labels, texts, strict=True):
            shown = _visible(text)
            if self._console.is_terminal:
                parts += [Text(label, style="bold"), Padding(Text(shown), (0, 0, 1, 2))]
            else:
                lines = "".join(f"\n  {line}".rstrip(" ") for line in shown.split("\n"))
                parts.append(Text(f"{label}:{lines}\n"))
        return Group(*parts)


@contextlib.contextmanager
def _interrupts_later() -> Iterator[None]:
    """Keep Ctrl-C back until the end of the block."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: held.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if held:
        signal.raise_signal(held[0])


def _visible(text: str) -> str:
    """Return text without control characters, which a terminal would obey."""
    control = lambda c: unicodedata.category(c) == "Cc" and c != "\n"  # noqa: E731
    return "".join(" " if control(c) else c for c in text).strip()
