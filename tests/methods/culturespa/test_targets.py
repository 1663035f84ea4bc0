"""What the probabilities of options ask of the next token, however their numbers are spelled."""

from __future__ import annotations

import numpy as np
import pytest

from jaxalign.lm.tokenizer import Tokenizer
from jaxalign.methods.culturespa.dataset import training_tokens
from jaxalign.methods.culturespa.select import Pair, Selection
from jaxalign.methods.culturespa.styles import StylePrompts, load_texts
from jaxalign.methods.culturespa.targets import OptionPaths
from jaxalign.pocket import MODEL_FOLDER
from jaxalign.pocket.society import held_out_survey
from jaxalign.surveys.responses import Responses

END = 99


def digits(last: int) -> tuple[list, list]:
    """The spellings of 1 to `last` where every digit is a token, and the numbers alone."""
    numbers = [tuple(map(int, str(n))) for n in range(1, last + 1)]
    end = (END,) if last > 9 else ()
    return [[(*number, *end)] for number in numbers], numbers


@pytest.mark.parametrize(("last", "positions"), [(4, 1), (10, 2), (19, 2)])
def test_losses_along_the_path_are_the_divergence_of_whole_numbers(last, positions):
    """A model's probability of a number is the product of those of its tokens, where they differ
    from those of other numbers."""
    spellings, numbers = digits(last)
    paths = OptionPaths.of([spellings], [numbers])
    assert paths.tokens_KxAxY.shape == (1, positions, last)
    random = np.random.default_rng(last)
    shares = random.dirichlet(np.ones(last))
    first, behind_one = random.dirichlet(np.ones(10)), random.dirichlet(np.ones(11))
    q = {token: first[token] for token in range(1, 10)}
    q_behind = dict(enumerate(behind_one[:10])) | {END: behind_one[10]}
    q_of = [
        q[number[0]] * (q_behind[(*number, END)[1]] if last > 9 and number[0] == 1 else 1)
        for number in numbers
    ]
    whole = float((shares * np.log(shares / q_of)).sum())
    targets = paths.targets(np.zeros(1, int), np.float32(shares)[None])
    total = 0.0
    for a, q_token in enumerate((q, q_behind)[:positions]):
        tokens, masses = targets.tokens_NxAxO[0, a], targets.masses_NxAxO[0, a]
        mass = masses.sum()
        total += sum(
            m * np.log(m / mass / q_token[t]) for t, m in zip(tokens, masses, strict=True) if m > 0
        )
    assert total == pytest.approx(whole, rel=1e-5)
    # The number in the example leads to every position.
    through = int(paths.through_K[0])
    assert through == -1 if positions == 1 else numbers[through][0] == 1
    assert positions == 1 or len(numbers[through]) == 2


def test_a_space_before_every_number_parts_nothing():
    spellings = [[(7, n)] for n in range(3)]
    paths = OptionPaths.of([spellings], [[(7, n) for n in range(3)]])
    assert paths.tokens_KxAxY.tolist() == [[[-1, -1, -1], [0, 1, 2]]]
    assert paths.through_K.tolist() == [-1]


def test_probabilities_follow_an_option_into_every_presentation():
    """What a country answers in the mean over presentations is asked of the numbers that stand
    there; other answers of the example stay what they are."""
    survey = held_out_survey()
    survey = survey.subset({item.id for item in survey.items[:4]})
    tokens, who = Tokenizer.load(MODEL_FOLDER), ("USA", "CHN")
    prompts = StylePrompts(load_texts(), held_out_survey(), who, count=2)
    made = training_tokens(survey.items, who, prompts, tokens, presentations=("A", "B"))
    random = np.random.default_rng(0)
    options = max(len(item.options) for item in survey.items)
    log_probs = np.full((2, 4, options), -np.inf, np.float32)
    for q, item in enumerate(survey.items):
        log_probs[:, q, : len(item.options)] = np.log(
            random.dirichlet(np.ones(len(item.options)), 2)
        )
    answered = Responses(survey, who, log_probs)
    pairs = [Pair(c, item.id, item.codes[0]) for c in who[::-1] for item in survey.items]
    selection = Selection.of(pairs)
    plain, examples = made.examples(selection), made.examples(selection, "p1", answered)
    assert plain.targets is None
    assert [e.tokens for e in plain] == [e.tokens for e in examples]
    targets, shares = examples.targets, answered.distributions()
    assert targets.tokens_NxAxO.shape[:2] == (len(pairs), 1)
    for n, pair in enumerate(pairs):
        q = [item.id for item in survey.items].index(pair.item)
        codes = survey.items[q].codes
        shown = codes if n % 2 == 0 else codes[::-1]
        found = {
            tokens.decode([t]): float(m)
            for t, m in zip(targets.tokens_NxAxO[n, 0], targets.masses_NxAxO[n, 0], strict=True)
            if t >= 0
        }
        row = shares[who.index(pair.group), q]
        assert found == {str(code): float(row[o]) for o, code in enumerate(shown)}
