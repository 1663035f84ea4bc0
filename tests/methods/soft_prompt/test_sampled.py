"""Replies as the fitness: what enters a reply, how it is read, and that a killed search goes on."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest

from jaxalign.core.progress import Progress
from jaxalign.lm.generate import generate
from jaxalign.methods.ask import ANSWERING
from jaxalign.methods.soft_prompt.control import make_control
from jaxalign.methods.soft_prompt.problem import read_problem
from jaxalign.methods.soft_prompt.sampled import Questions, make_questions, reply_number
from jaxalign.methods.soft_prompt.search import ExecutionPlan, build_search
from jaxalign.methods.soft_prompt.settings import Settings
from jaxalign.methods.soft_prompt.space import decode
from jaxalign.optim.strategy import Strategy
from jaxalign.runs import Run
from jaxalign.surveys.responses import UNREADABLE, Responses
from jaxalign.surveys.shown_replies import read_shown
from jaxalign.surveys.survey import vsm
from tests.methods.soft_prompt.test_search import load, tiny, tiny_settings  # noqa: F401

PLAN = ExecutionPlan(4, "xla", fixed=True, slots=32)
POCKET = Settings(
    countries=("USA", "CHN"),
    presentations=("A", "B"),
    reading="sampled",
    replies=2,
    strategy=Strategy(population=4),
    icl_examples=0,
    gradient_steps=0,
)


@pytest.fixture(scope="module")
def questions() -> Questions:
    return make_questions(read_problem(POCKET))


def test_shares_are_of_the_replies_that_name_an_option(questions):
    """A silent item is answered by a uniform choice, with -inf nowhere but past its options."""
    positions = np.zeros((1, questions.count, 4), np.int8)
    positions[0, 1] = [2, UNREADABLE, 2, 4]
    positions[0, 2] = UNREADABLE
    shares_SxO = questions.shares(positions)[0]
    np.testing.assert_array_equal(shares_SxO[0], [1, 0, 0, 0, 0])
    np.testing.assert_allclose(shares_SxO[1], [0, 0, 2 / 3, 0, 1 / 3], rtol=1e-6)
    np.testing.assert_allclose(shares_SxO[2], 0.2, rtol=1e-6)


def test_a_candidates_prompt_has_its_own_rows(questions):
    V, M = questions.vocabulary, POCKET.prompt.length
    first, other = questions.prompt(0, 5), questions.prompt(7, 5)
    soft = first >= V
    assert first[soft].tolist() == list(range(V, V + M))
    assert other[soft].tolist() == list(range(V + 7 * M, V + 8 * M))
    np.testing.assert_array_equal(first[~soft], other[~soft])


def test_a_reply_is_read_by_what_was_shown(questions):
    """Half of the questions are shown with the numbers the other way round."""
    assert questions.count == 48
    said = questions.reader.decode
    tokens = [t for t in range(questions.vocabulary) if said([t]) == "2"][:1]
    assert [questions.reader.read(s, tokens) for s in (0, 24)] == [1, 3]
    assert questions.looks[0] != questions.looks[24]
    assert not questions.reader.in_reasoning


@pytest.mark.long
def test_the_search_says_what_has_no_gradient(tiny, caplog):  # noqa: F811
    caplog.set_level("INFO", "jaxalign")
    problem, lm = load(tiny_settings(tiny, reading="sampled", strategy=Strategy(population=4)))
    search = build_search(problem, lm, PLAN)
    make_control(search)
    assert "gradient control: does not apply to sampled replies" in caplog.text
    assert search.facts["reply_slots"] == 32


@pytest.mark.long
def test_a_reply_depends_on_seed_generation_item_and_number_alone():
    """Each reply is the one that the prompt gets when it is asked alone and heard out.

    So it depends on no other candidate, on no slot, and not on being cut off; and the random
    numbers are the same for all candidates.
    """
    problem, lm = load(POCKET)
    search = build_search(problem, lm, PLAN)
    sampled, questions = search.sampled, search.sampled.questions
    members = np.stack([np.asarray(search.first_members(c)) for c in range(2)])
    members[1, 2] = members[1, 1]
    found = sampled.evaluate(members, 3, search.inputs)
    np.testing.assert_array_equal(found.positions_CxExSxR[1, 1], found.positions_CxExSxR[1, 2])
    assert found.fitness_CxE[1, 1] == found.fitness_CxE[1, 2]
    assert len(set(found.fitness_CxE[1].tolist())) > 1
    later = sampled.evaluate(members, 4, search.inputs)
    assert (later.positions_CxExSxR[1, 1] != found.positions_CxExSxR[1, 1]).any()
    # One candidate alone, and whole replies.
    prompt_MxD = jax.jit(decode)(search.local_inputs.space, members)[1, 2]
    whole = generate(
        lm.config,
        lm.params,
        [questions.prompt(0, s) for s in range(questions.count)],
        ANSWERING,
        lm.tokenizer.stop_ids,
        ids=[reply_number(0, 3, look) for look in questions.looks],
        samples=2,
        extra_embeddings=prompt_MxD,
    )
    rows = [questions.asked.rows[n // 2] for n in range(len(whole))]
    expected = [
        read_shown(lm.tokenizer.decode(reply), shown)
        for shown, reply in zip(rows, whole, strict=True)
    ]
    assert found.positions_CxExSxR[1, 2].reshape(-1).tolist() == expected
    # The fitness is the objective's loss of the shares, averaged over both presentations.
    positions_FxRxQ = np.array(expected).reshape(2, 24, 2).swapaxes(1, 2)
    both = [Responses.from_positions(vsm(), ["x"], p[:, None]) for p in positions_FxRxQ]
    shares_QxO = np.mean([r.distributions()[0] for r in both], axis=0)
    with np.errstate(divide="ignore"):
        loss = search.objective.loss(np.log(shares_QxO)[None], np.array([1]))[0]
    np.testing.assert_allclose(found.fitness_CxE[1, 2], loss, atol=1e-3)


class KilledError(Exception):
    """Stands for a kill in the midst of a generation."""


@pytest.mark.long
def test_a_killed_search_goes_on_with_the_same_bits(tiny, tmp_path):  # noqa: F811
    """Random replies, most of which name no option: those are counted, too."""
    settings = tiny_settings(
        tiny,
        reading="sampled",
        presentations=("A",),
        countries=("USA", "CHN"),
        strategy=Strategy(population=4),
        generations=5,
        save_every=2,
    )
    problem, lm = load(settings)
    search = build_search(problem, lm, PLAN)

    def run(name: str, resume: bool = False, killed_at: int | None = None):
        def stop(event: Progress) -> None:
            if event.done == killed_at and event.fields.get("replies", "").startswith("288"):
                raise KilledError

        with Run.create(tmp_path / name, settings, {}, resume) as record:
            where = {"record": record, "resume": resume, "on_progress": stop}
            return search.run(tmp_path / name / "checkpoints", **where)

    whole = run("whole")
    with pytest.raises(KilledError):
        run("killed", killed_at=3)
    assert len((tmp_path / "killed" / "metrics.jsonl").read_text().splitlines()) == 3
    resumed = run("killed", resume=True)
    np.testing.assert_array_equal(resumed.best_CxZ, whole.best_CxZ)
    np.testing.assert_array_equal(resumed.fitness_C, whole.fitness_C)
    lines = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("whole", "killed")]
    assert lines[0] == lines[1]
    row = json.loads(lines[0].splitlines()[0])["CHN"]
    assert row["replies"] == 4 * 24 * settings.replies
    assert 0 < row["unreadable"] <= row["replies"]
    assert row["unanswered"] <= row["unreadable"] // settings.replies
