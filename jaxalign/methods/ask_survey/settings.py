"""The settings of `jaxalign ask`: its command line, its record, and what `resume` must keep."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

from jaxalign.answering.asked import AnswerForm
from jaxalign.core.errors import UserError
from jaxalign.lm.sampling import Sampling
from jaxalign.lm.weights import WeightFormat
from jaxalign.methods.ask import ANSWERING
from jaxalign.methods.base import ICL, NAIVE, PERSONA, UNAWARE
from jaxalign.methods.culturespa.styles import P3_CHOICES, Examples, P3Form, reads_answers
from jaxalign.runs import may_change
from jaxalign.surveys.hofstede import DEFAULT_EDITION
from jaxalign.surveys.options import SurveyOptions, check_options
from jaxalign.surveys.presentations import check_presentations

AnyStyle = Literal["unaware", "p1", "p2", "p3", "p1p3", "p2p3", "naive", "persona", "icl"]
WITHOUT_COUNTRY: tuple[AnyStyle, ...] = (UNAWARE.key, NAIVE.key)
"""The styles that name no country."""
OF_SOFT_PROMPTS: tuple[AnyStyle, ...] = (PERSONA.key, ICL.key, NAIVE.key)
"""The styles of the soft-prompt paper; the others are CultureSPA's."""
VSM = "vsm"


@dataclasses.dataclass(frozen=True)
class AskSettings(SurveyOptions):
    """Ask a model a survey or a test under any prompt styles, without training, and score it."""

    out: Path | None = may_change(None)
    """Directory of the run; default: runs/ask-<date>-<time>."""
    resume: bool = may_change(False)
    """Continue the run in the output directory; it ends with the same bits as one that was never
    stopped."""
    model: str | None = None
    """Model: a Hugging Face folder, a GGUF file of a Llama, a hub id such as
    meta-llama/Meta-Llama-3-8B-Instruct, or smollm2; default: the pocket model that ships with the
    package."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Dtype of weights and activations; auto: float32 for the pocket model, bfloat16 for others."""
    weights: WeightFormat = "stored"
    """Storage of the linear layers; int8 stores them in 8 bits."""
    survey: str | None = None
    """Survey or test: any file or folder that `jaxalign check` accepts, or vsm, the 24 items of the
    VSM 2013. Default: the simulated society's survey."""
    distributions: Path | None = None
    """Answers by country to a survey in a CSV of your own: a CSV with the columns country, item,
    code and share."""
    countries: tuple[str, ...] | None = None
    """Countries to speak as and to compare with, or any other groups, as the survey names them.
    Default: all of the survey."""
    styles: tuple[AnyStyle, ...] | None = None
    """How the questions are put. unaware: a person of no named culture; p1: of the country; p2: p1
    and the countries most like it and most unlike it; p3: unaware, then questions with the
    country's majority answers; p1p3, p2p3: both; naive: the question alone; persona: p1 under its
    name in the soft-prompt paper; icl: persona, then questions of another survey with the country's
    answers. Default: unaware and p1, and for soft prompts naive, as they are tuned."""
    adapter: tuple[str, ...] = ()
    """Folders of low-rank adapters, ours or PEFT's, asked like the model itself; NAME=FOLDER names
    one, and where NAME is a country the adapter speaks for that country alone."""
    prompt: tuple[str, ...] = ()
    """Soft prompts: files of ours or folders of PEFT, asked like the model itself. One that was
    tuned for a country speaks for that country alone; NAME=FILE as for adapters."""
    unchanged: bool = True
    """Also ask the model without adapter and soft prompt, for comparison."""
    reading: Literal["exact", "sampled"] = "exact"
    """How an answer is read. exact: the most likely option; sampled: the first integer of each of
    several replies."""
    answer: AnswerForm = "number"
    """What names an option in exact answers. number: its number or letter. Its text, asked for
    without listing the options, is read by its log-likelihood: label by the sum over its tokens;
    label-per-token by their mean; label-against-prior by the sum less that after a neutral
    question."""
    presentations: tuple[str, ...] | None = None
    """Forms in which questions are shown and over which answers are averaged. A: as published; B:
    the options' numbers assigned the other way round; C: options in reverse order, each with its
    number; D: options in reverse order, numbered from the top; letters and letters-reversed:
    letters for numbers, from the top; orders: all orders of up to 5 options; order-312: one order.
    Default: A for the pocket model, which was trained on no other form, and where texts are read,
    as no options are listed; else A and B."""
    runs: int = 3
    """Number of replies to each question in each presentation if they are sampled."""
    seed: int = 0
    """Seed of sampled replies, of examples and of the bootstrap over questions."""
    answering: Sampling = dataclasses.field(default_factory=lambda: ANSWERING)
    """How answers are sampled, if they are."""
    examples: Examples = "paper"
    """Where P2 and P3 read countries' answers. paper: the tested survey itself, as published;
    leak_free: another one."""
    source: Path | None = None
    """The other survey, for leak-free examples and for icl; default, with the default survey: the
    simulated society's values module."""
    source_distributions: Path | None = None
    """Answers by country to a source in a CSV of your own."""
    p3_choice: str | None = None
    """Which questions P3 shows before a question. topics: those of its topic first; similar: those
    whose words are most alike; or a file that ranks the survey's questions by similarity. Default:
    follows the model, similar for a real one and topics for the pocket model."""
    p3_form: P3Form | None = None
    """How P3 shows them. one_message: all of them in the system message, as published; turns: each
    as a question with its reply. Default: follows the model, one_message for a real one and turns
    for the pocket model."""
    icl_examples: int = 5
    """Number of questions that icl shows."""
    texts: Path | None = None
    """Folder with prompt texts of your own (item.jinja, persona.jinja, unaware.jinja ...); default:
    the package's."""
    language: str = "en"
    """Language of the prompt texts and of the country names in them: en or zh, or the code of any
    other together with texts of your own. Questions are asked as the survey words them."""
    edition: str = DEFAULT_EDITION
    """Edition of countries' published scores, where the survey holds the VSM's items; or a CSV of
    your own with the columns group, name and the dimensions."""
    constant: float = 50.0
    """C, the free constant of the six scores, in points, where the survey holds the VSM's items."""
    mas_weight: Literal[35, 25] = 35
    """Weight of the second difference of MAS: the manual's 35, or the 25 that some papers print."""
    limit: int | None = None
    """For a quick look: ask this number of items, spread evenly over the survey or test."""
    resamples: int = 4000
    """Number of resamples of the bootstrap over questions."""
    block_tokens: int | None = None
    """Number of tokens computed together in exact answering; lower it if memory is short. Default:
    follows the device, 2048 on a CPU and 4096 elsewhere."""
    batch_size: int = may_change(64)
    """Number of replies written at a time, if they are sampled; fewer if memory is short."""
    model_parallel: int | None = may_change(None)
    """Number of devices that share one copy of the weights; default: as few as memory allows."""
    quiet: bool = may_change(False)
    """Show no progress bars."""
    verbose: bool = may_change(False)
    """Whether to show plans, meshes, kernels and memory too; the run's notes.log has them."""

    @property
    def all_styles(self) -> tuple[AnyStyle, ...]:
        """The styles of the model and its adapters."""
        return (UNAWARE.key, "p1") if self.styles is None else self.styles

    @property
    def prompt_styles(self) -> tuple[AnyStyle, ...]:
        """The styles of soft prompts."""
        return (NAIVE.key,) if self.styles is None else self.styles


def needs_examples(style: AnyStyle) -> bool:
    """Return whether a style's prompts depend on how groups answered a survey."""
    return style == ICL.key or (style not in OF_SOFT_PROMPTS and reads_answers(style))


_LEAST = {
    "runs": 1,
    "resamples": 1,
    "batch_size": 1,
    "block_tokens": 64,
    "icl_examples": 1,
    "limit": 1,
}


def check_settings(settings: AskSettings) -> None:
    """Raise UserError for settings that no run can have, whatever files they name."""
    for name, least in _LEAST.items():
        value = getattr(settings, name)
        if value is not None and value < least:
            raise UserError(f"`{name}` {value}: give at least {least}")
    for name in ("countries", "styles"):
        values = getattr(settings, name)
        if values is not None and (not values or len(set(values)) < len(values)):
            raise UserError(f"`{name}` {' '.join(values)}: give at least one, each once")
    if settings.presentations is not None:
        check_presentations(settings.presentations)
    if settings.answer != "number" and settings.reading == "sampled":
        raise UserError(
            f"`answer` {settings.answer}: sampled replies are read by their number; choose "
            "`reading` exact"
        )
    if not (settings.unchanged or settings.adapter or settings.prompt):
        raise UserError("`unchanged` False: nothing is left to ask; give an `adapter` or `prompt`")
    choice = settings.p3_choice
    if choice is not None and choice not in P3_CHOICES and not Path(choice).is_file():
        raise UserError(f"`p3_choice` {choice}: give {', '.join(P3_CHOICES)} or an existing file")
    _check_surveys(settings)


def _check_surveys(settings: AskSettings) -> None:
    """Refuse files that would be ignored, and examples that nothing can be shown from."""
    styles = {*settings.all_styles, *(settings.prompt_styles if settings.prompt else ())}
    own = settings.survey not in (None, VSM)
    if settings.distributions is not None and not own:
        raise UserError(f"`distributions` {settings.distributions}: goes with a `survey` of yours")
    check_options(settings, {"survey": own, "source": settings.source is not None})
    if settings.source_distributions is not None and settings.source is None:
        raise UserError(
            f"`source_distributions` {settings.source_distributions}: goes with a `source`"
        )
    wants_source = settings.examples == "leak_free" or ICL.key in styles
    if settings.source is not None and not wants_source:
        raise UserError(
            f"`source` {settings.source}: read only with `examples` leak_free or the style icl"
        )
    if wants_source and settings.source is None and settings.survey is not None:
        reason = "`examples` leak_free" if settings.examples == "leak_free" else "the style icl"
        raise UserError(
            f"{reason} with `survey` {settings.survey}: name another survey, `source`, whose "
            "answers by country are shown; the default one is simulated"
        )
