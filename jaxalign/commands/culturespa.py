"""CultureSPA from start to end: write questions, answer, select, fine-tune, measure.

    jaxalign culturespa                                              # the pocket model
    jaxalign culturespa --model /path/to/Meta-Llama-3-8B-Instruct \\
        --survey culturespa_data/ --reading sampled \\
        --countries USA CAN BOL BRA GBR NLD DEU UKR CHN RUS IND THA KEN NGA ETH ZWE AUS NZL

Prints the cultural alignment score of the unchanged model, plainly and under each prompt style, and
of the models fine-tuned on its own answers: jointly, one adapter per country, and with
cross-culture thinking (CCT). With a real model, the joint and the specific models are also asked
under every prompt style (`--prompting`). Questions are shown in one form or in several, over which
answers are averaged (`--presentations`). Writes pictures and a report besides what the library
function `jaxalign.run_culturespa` writes. Source: Xu, Leng, Yu and Xiong, NAACL 2025 (CultureSPA,
arXiv 2410.12971).

Settings that follow the model are the paper's for a real model (1,000 questions on each topic, one
seed, a learning rate of 1e-4 ...) and measured ones for the pocket model; each is printed with its
source at the start. Every random step is repeated for each of `--seeds`. Steps keep their output in
`--out`, and `--resume` continues there. The default run takes about 4 minutes on 2 idle CPU cores.
"""

from __future__ import annotations

from jaxalign.commands.evals.guard import HarnessTest
from jaxalign.commands.reports.culturespa import write_culturespa_report
from jaxalign.commands.reports.culturespa_plots import write_plots
from jaxalign.commands.reports.culturespa_tables import show_result
from jaxalign.core.progress import one_step
from jaxalign.methods.culturespa import CultureSPASettings, run_culturespa
from jaxalign.methods.culturespa.settings import check_settings
from jaxalign.runs.console import progress_bars


def culturespa(settings: CultureSPASettings) -> None:
    """Run the method, draw its pictures, write its report and print its tables."""
    test = None
    if settings.guard_tasks:
        check_settings(settings)
        test = HarnessTest(settings.guard_tasks, settings.guard_task_folder)
    with progress_bars(quiet=settings.quiet) as on_progress:
        result = run_culturespa(settings, on_progress, test)
        with one_step("report", on_progress):
            write_plots(result.out, result.record)
            write_culturespa_report(result.record, result.out)
    show_result(result.record)
    print(f"everything is in {result.out}; talk to the result: jaxalign chat {result.out}")
