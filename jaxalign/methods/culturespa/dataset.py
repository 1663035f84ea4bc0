"""Selected pairs as training data: a JSONL file that other trainers read, and tokens for ours.

A line is {"messages": [{"role": "system", "content": ...}, {"role": "user", ...}, {"role":
"assistant", "content": "3"}]}. TRL's SFTTrainer reads the file with `load_dataset("json", ...)`;
`assistant_only_loss=True` restricts the loss to the answer, as here. LLaMA-Factory takes the folder
as `dataset_dir`, with the `dataset_info.json` written beside the data.

The target is the option's number and the end of the turn, nothing else, as in CultureSPA (Xu et
al. 2025); with the setting `train.target` distribution it is the probabilities of all options
(`targets`), which our trainer alone reads. The joint model trains on the "p1" prompts of all
groups, a specific model on those of one group, the CCT variant on "p2" prompts. A prompt has
exactly the tokens that answering uses.

Where questions are asked in several presentations, pairs are shown in them in turn: pair n of a
model's data in presentation n mod F, and the target is what stands there before the pair's option.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign.answering.prefix_tree import Spellings
from jaxalign.core.errors import UserError
from jaxalign.core.files import write_atomically, write_json
from jaxalign.core.seals import change, sealed
from jaxalign.lm.tokenizer import Tokenizer
from jaxalign.methods.culturespa.select import TRAINED_UNDER, Pair, Selection
from jaxalign.methods.culturespa.styles import Style, StylePrompts, encode_styles
from jaxalign.methods.culturespa.targets import OptionPaths
from jaxalign.prompts import Message
from jaxalign.surveys.presentations import PUBLISHED, show
from jaxalign.surveys.responses import Responses
from jaxalign.surveys.survey import Item
from jaxalign.training.packing import Examples

Row = dict[str, list[Message]]
DATASET_INFO, PAIRS = "dataset_info.json", "pairs.json"
_log = logging.getLogger("jaxalign")

_TAGS = {
    "role_tag": "role",
    "content_tag": "content",
    "user_tag": "user",
    "assistant_tag": "assistant",
    "system_tag": "system",
}


def to_rows(
    pairs: Selection | Sequence[Pair],
    items: Sequence[Item],
    prompts: StylePrompts,
    style: Style = "p1",
    presentations: Sequence[str] = (PUBLISHED,),
) -> list[Row]:
    """Return one conversation per pair, ending in the assistant's number.

    Args:
        pairs: Questions and answers to train on.
        items: The questions.
        prompts: What stands before a question.
        style: The style that the questions are asked in.
        presentations: Names of the presentations that pairs are shown in, in turn.

    Raises:
        UserError: If a pair's question is not among `items`, or its answer is not one of its codes.
    """
    return [json.loads(line) for line in row_lines(pairs, items, prompts, style, presentations)]


def row_lines(
    pairs: Selection | Sequence[Pair],
    items: Sequence[Item],
    prompts: StylePrompts,
    style: Style = "p1",
    presentations: Sequence[str] = (PUBLISHED,),
) -> Iterator[str]:
    """Yield the rows of `to_rows` as lines of JSON.

    A text is rendered once for all pairs that share it: a question for all groups, a group's
    lead-in for all questions.

    Raises:
        UserError: As `to_rows`, before the first line.
    """
    selection = Selection.of(pairs)
    item_of = _items_of(selection, items)
    option_N = _answer_positions(selection, item_of)  # refuses answers that are no codes
    shown = show(item_of, presentations)
    shown_N = _in_turn(shown.index_FxQ, selection.item_N)
    questions: dict[int, str] = {}
    lead_ins: dict[tuple[int, tuple[str, ...]], str] = {}

    def lines() -> Iterator[str]:
        columns = selection.group_N, shown_N, option_N
        for c, s, option in zip(*(x.tolist() for x in columns), strict=True):
            question = shown.shown[s]
            shared_by = c, _examples_before(prompts, style, question.item)
            if shared_by not in lead_ins:
                messages = prompts.lead_in(style, selection.groups[c], question.item)
                lead_ins[shared_by] = ", ".join(map(_json, messages))
            if s not in questions:
                questions[s] = _json(prompts.texts.prompts.user(question))
            reply = _json({"role": "assistant", "content": question.mark_of(option)})
            yield f'{{"messages": [{lead_ins[shared_by]}, {questions[s]}, {reply}]}}'

    return lines()


def _in_turn(index_FxQ: np.ndarray, item_N: np.ndarray) -> np.ndarray:
    """Return which shown item each pair is: pair n in presentation n mod F."""
    return index_FxQ[np.arange(len(item_N)) % len(index_FxQ), item_N]


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


@dataclasses.dataclass(frozen=True, eq=False)
class TrainingTokens:
    """The tokens that examples are cut from: every lead-in, question and number once.

    An example is three pieces of one pool: a lead-in, a question as it is shown, and the number or
    letter that answers it.

    Attributes:
        styles: Styles S that questions are asked in.
        groups: Groups C that they are asked for.
        items: The questions Q.
        pool: int32, the tokens of all pieces, one after the other.
        starts: int64, where each piece begins in the pool.
        sizes: int64, number of tokens of each piece.
        lead_in_SxCxQ: int, which piece stands before a question.
        question_FxQ: int, the piece of each question under each of F presentations.
        number_FxQxO: int, the piece of what stands before each option there, with the end of the
            turn if that is trained; -1 past a question's options.
        set_FxQ: int, which set of options, as they are written there, a question has.
        paths: What the probabilities of the options of each set ask of the next token.
    """

    styles: tuple[Style, ...]
    groups: tuple[str, ...]
    items: tuple[Item, ...]
    pool: np.ndarray
    starts: np.ndarray
    sizes: np.ndarray
    lead_in_SxCxQ: np.ndarray
    question_FxQ: np.ndarray
    number_FxQxO: np.ndarray
    set_FxQ: np.ndarray
    paths: OptionPaths

    def examples(
        self,
        pairs: Selection | Sequence[Pair],
        style: Style = "p1",
        answered: Responses | None = None,
    ) -> Examples:
        """Return pairs as examples, in their order, shown in the presentations in turn.

        Args:
            pairs: Questions and answers to train on.
            style: The style that the questions are asked in.
            answered: What groups answer to the questions, by group: examples are then to be trained
                toward the probabilities of all options, not toward the pair's answer.

        Raises:
            UserError: If a pair's question is not among the items, or its answer is not one of its
                codes.
        """
        selection = Selection.of(pairs)
        item_of = _items_of(selection, self.items)
        option_N = _answer_positions(selection, item_of)
        # From positions in the selection's own lists to positions in those of the pool.
        item_at = {item.id: q for q, item in enumerate(self.items)}
        group_at = {group: c for c, group in enumerate(self.groups)}
        item_N = np.array([item_at.get(i, -1) for i in selection.items], int)[selection.item_N]
        group_N = np.array([group_at.get(g, -1) for g in selection.groups], int)[selection.group_N]
        presentation_N = np.arange(len(selection)) % len(self.question_FxQ)
        targets = None
        if answered is not None:
            set_N = self.set_FxQ[presentation_N, item_N]
            targets = self.paths.targets(set_N, _shares(selection, answered))
            through_N = self.paths.through_K[set_N]
            option_N = np.where(through_N < 0, option_N, through_N)
        piece_Nx3 = np.stack(
            [
                self.lead_in_SxCxQ[self.styles.index(style), group_N, item_N],
                self.question_FxQ[presentation_N, item_N],
                self.number_FxQxO[presentation_N, item_N, option_N],
            ],
            axis=1,
        )
        sizes_Nx3 = self.sizes[piece_Nx3]
        prompt_N = sizes_Nx3[:, :2].sum(axis=1)
        return Examples(self.pool, self.starts[piece_Nx3], sizes_Nx3, prompt_N, targets)

    @property
    def answers_FxQ(self) -> np.ndarray:
        """Tokens of the longest answer to each question under each presentation."""
        return np.where(self.number_FxQxO < 0, 0, self.sizes[self.number_FxQxO]).max(axis=-1)

    @property
    def prompts_FxSxCxQ(self) -> np.ndarray:
        """Tokens of everything before the answer."""
        return self.sizes[self.lead_in_SxCxQ] + self.sizes[self.question_FxQ][:, None, None]

    def longest(self) -> list[int]:
        """Return the tokens of each item's longest example, whichever way it may be asked."""
        return (self.prompts_FxSxCxQ.max(axis=(1, 2)) + self.answers_FxQ).max(axis=0).tolist()


def training_tokens(
    items: Sequence[Item],
    groups: Sequence[str],
    prompts: StylePrompts,
    tokens: Tokenizer,
    styles: Sequence[Style] = ("p1", "p2"),
    end_of_turn: bool = True,
    presentations: Sequence[str] = (PUBLISHED,),
) -> TrainingTokens:
    """Encode what examples are made of; each question once for all groups, styles and models.

    Args:
        items: The questions.
        groups: The groups that they may be asked for.
        prompts: What stands before a question.
        tokens: The model's tokenizer.
        styles: The styles that the questions may be asked in; not "unaware".
        end_of_turn: Whether the loss covers the end of the turn besides the number, which is
            spelled as the tokenizer writes it after the assistant header.
        presentations: Names of F presentations that pairs are shown in, in turn.
    """
    shown = show(items, presentations)
    asked = encode_styles(tokens, prompts, styles, groups, shown.shown)
    if len(asked.questions) != len(shown.shown):
        raise UserError(
            f"{tokens.folder}: its chat template words a question differently in the styles "
            f"{', '.join(styles)}; give a template that does not, or train on one style"
        )
    end = (tokens.eot_id,) if end_of_turn else ()
    numbers: dict[tuple[int, ...], int] = {}  # tokens of a number -> its piece
    first = len(asked.lead_ins) + len(asked.questions)
    sets, set_of_question = asked.option_sets
    written = [_numbers(tokens, spellings) for spellings in sets]
    number_of = [
        [numbers.setdefault((*number, *end), first + len(numbers)) for number in of_set]
        for of_set in written
    ]
    number_SxO = np.full((len(shown.shown), max(map(len, number_of))), -1)
    for row, k in zip(number_SxO, set_of_question.tolist(), strict=True):
        row[: len(number_of[k])] = number_of[k]
    pieces = [*asked.lead_ins, *asked.questions, *numbers]
    sizes = np.array([len(piece) for piece in pieces], np.int64)
    # Style by style, group by group, shown item by shown item; the same however an item is shown.
    lead_ins = asked.pairs[:, 0].reshape(len(styles), len(groups), -1)
    return TrainingTokens(
        styles=tuple(styles),
        groups=tuple(groups),
        items=tuple(items),
        pool=np.concatenate(pieces).astype(np.int32),
        starts=np.cumsum(sizes) - sizes,
        sizes=sizes,
        lead_in_SxCxQ=lead_ins[..., shown.index_FxQ[0]],
        question_FxQ=len(asked.lead_ins) + shown.index_FxQ,
        number_FxQxO=number_SxO[shown.index_FxQ],
        set_FxQ=set_of_question[shown.index_FxQ],
        paths=OptionPaths.of(sets, written),
    )


def to_examples(
    pairs: Selection | Sequence[Pair],
    items: Sequence[Item],
    prompts: StylePrompts,
    tokens: Tokenizer,
    style: Style = "p1",
    end_of_turn: bool = True,
    presentations: Sequence[str] = (PUBLISHED,),
    answered: Responses | None = None,
) -> Examples:
    """Return the conversations of `to_rows` as tokens, in the order of `pairs`.

    Examples of several models on the same questions share their tokens with `training_tokens`.

    Args:
        pairs: Questions and answers to train on.
        items: The questions.
        prompts: What stands before a question.
        tokens: The model's tokenizer.
        style: The style that the questions are asked in.
        end_of_turn: As for `training_tokens`.
        presentations: As for `training_tokens`.
        answered: As for `TrainingTokens.examples`.

    Raises:
        UserError: As `to_rows`.
    """
    selection = Selection.of(pairs)
    item_of = _items_of(selection, items)
    if not len(selection):
        return Examples.of([])
    asked = [item_of[q] for q in np.unique(selection.item_N).tolist()]
    made = training_tokens(
        asked, selection.groups, prompts, tokens, (style,), end_of_turn, presentations
    )
    return made.examples(selection, style, answered)


def write_selected(
    folder: Path,
    selected: Mapping[str, Selection],
    items: Sequence[Item],
    prompts: StylePrompts,
    presentations: Sequence[str] = (PUBLISHED,),
) -> None:
    """Write the training data of one seed, unless it is there already, as it was written.

        folder/joint.jsonl, cct.jsonl, ...   conversations to train on
              /dataset_info.json             what LLaMA-Factory reads first
              /pairs.json                    group, question and answer, a code of the survey's,
                                             of every pair

    Lines are written as they are made. `pairs.json` is written last: it marks the step as done.
    """
    rows = {method: folder / f"{method}.jsonl" for method in selected}
    files = (*rows.values(), folder / DATASET_INFO, folder / PAIRS)
    changed = [f"{path}: {what}; made again" for path in files if (what := change(path))]
    for note in changed:
        _log.info(note)
    if (folder / PAIRS).exists() and not changed:
        return
    with sealed(*files):
        for method, path in rows.items():
            style = TRAINED_UNDER[method]
            _write_lines(path, row_lines(selected[method], items, prompts, style, presentations))
        write_dataset_info(folder, {method: path.name for method, path in rows.items()})
        _write_lines(folder / PAIRS, _pair_lines(selected))


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    write_atomically(path, lambda file: file.writelines(f"{line}\n".encode() for line in lines))


def _pair_lines(selected: Mapping[str, Selection]) -> Iterator[str]:
    """Yield the lines of `pairs.json`, one per pair."""
    yield "{"
    for m, (method, selection) in enumerate(selected.items()):
        yield f"{_json(method)}: ["
        names = list(map(_json, selection.groups)), list(map(_json, selection.items))
        columns = selection.group_N, selection.item_N, selection.answer_N
        for n, (c, q, answer) in enumerate(zip(*(x.tolist() for x in columns), strict=True), 1):
            yield f"[{names[0][c]}, {names[1][q]}, {answer}]" + "," * (n < len(selection))
        yield "]" + "," * (m + 1 < len(selected))
    yield "}"


def write_dataset_info(folder: Path, files: Mapping[str, str]) -> None:
    """Write LLaMA-Factory's `dataset_info.json`; `files` maps a data set's name to its file."""
    entries = {
        name: {
            "file_name": file,
            "formatting": "sharegpt",
            "columns": {"messages": "messages"},
            "tags": _TAGS,
        }
        for name, file in files.items()
    }
    write_json(folder / DATASET_INFO, entries)


def _items_of(selection: Selection, items: Sequence[Item]) -> list[Item]:
    """Return the item of each of the selection's ids; UserError if a pair's is not there."""
    by_id = {item.id: item for item in items}
    for q in np.unique(selection.item_N).tolist():
        if (name := selection.items[q]) not in by_id:
            raise UserError(f"item {name!r} of a pair is not among the {len(items)} questions")
    # Ids that no pair is about stand for any item.
    return [by_id.get(name, items[0]) for name in selection.items]


def _answer_positions(selection: Selection, item_of: Sequence[Item]) -> np.ndarray:
    """Return the position of each pair's answer among its item's codes, int [N].

    Raises:
        UserError: If an answer is none of the codes.
    """
    most = max((len(item.codes) for item in item_of), default=0)
    codes_QxO = np.array([(*i.codes, *[i.codes[0]] * (most - len(i.codes))) for i in item_of])
    if not len(selection):
        return np.empty(0, int)
    same_NxO = codes_QxO[selection.item_N] == selection.answer_N[:, None]
    if not same_NxO.any(axis=1).all():
        n = int(np.argmin(same_NxO.any(axis=1)))
        item, group = item_of[selection.item_N[n]], selection.groups[selection.group_N[n]]
        raise UserError(
            f"item {item.id!r}: answer {selection.answer_N[n]} of {group} is none of its codes "
            f"{list(item.codes)}"
        )
    return same_NxO.argmax(axis=1)


def _shares(selection: Selection, answered: Responses) -> np.ndarray:
    """Return the probabilities of the options that each pair's group answers with, [N, O]."""
    shares_CxQxO = np.nan_to_num(answered.distributions())
    row_of = {group: c for c, group in enumerate(answered.conditions)}
    column_of = {item.id: q for q, item in enumerate(answered.survey.items)}
    rows = np.array([row_of.get(group, -1) for group in selection.groups], int)
    columns = np.array([column_of.get(name, -1) for name in selection.items], int)
    return shares_CxQxO[rows[selection.group_N], columns[selection.item_N]]


def _examples_before(prompts: StylePrompts, style: Style, item: Item) -> tuple[str, ...]:
    """Return the ids of the examples before an item, on which its lead-in depends."""
    if not style.endswith("p3"):
        return ()
    return tuple(example.id for example in prompts.examples_for(item))


def _numbers(tokens: Tokenizer, options: Spellings) -> list[tuple[int, ...]]:
    """Return the tokens of the number of each option, without the end of the turn.

    A number is spelled as the tokenizer spells it, the first spelling that answering scores. Where
    digits are tokens, that spelling ends with the end of the turn, to tell 1 from 10.
    """
    firsts = [tuple(spellings[0]) for spellings in options]
    return [number[:-1] if number[-1] == tokens.eot_id else number for number in firsts]
