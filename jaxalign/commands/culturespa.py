"""CultureSPA from start to end: write questions, answer, select, fine-tune, measure.

    jaxalign culturespa                                              # the pocket model
    jaxalign culturespa --model /path/to/Meta-Llama-3-8B-Instruct \\
        --survey culturespa_data/ --per-topic 1000 --seeds 1 --reading sampled --end-of-turn \\
        --train.batch 128 --train.learning-rate 1e-4 --train.remat --train.no-unroll \\
        --countries USA CAN BOL BRA GBR NLD DEU UKR CHN RUS IND THA KEN NGA ETH ZWE AUS NZL

Prints the cultural alignment score of the unchanged model, plainly and under each prompt style, and
of the models fine-tuned on its own answers: jointly, one adapter per country, and with
cross-culture thinking (CCT). Writes pictures and a report besides what the library function
`jaxalign.run_culturespa` writes. Source: Xu, Leng, Yu and Xiong, NAACL 2025 (CultureSPA, arXiv
2410.12971).

Every random step is repeated for each of `--seeds`. Steps keep their output in `--out`, and
`--resume` continues there. The default run takes about 4 minutes on 2 idle CPU cores.
"""

from __future__ import annotations

from jaxalign.commands.reports.culturespa import write_culturespa_report
from jaxalign.commands.reports.culturespa_plots import write_plots
from jaxalign.commands.reports.culturespa_tables import show_result
from jaxalign.methods.culturespa import CultureSPASettings, run_culturespa
from jaxalign.runs.console import progress_bars


def culturespa(settings: CultureSPASettings) -> None:
    """Run the method, draw its pictures, write its report and print its tables."""
    with progress_bars(quiet=settings.quiet) as on_progress:
        result = run_culturespa(settings, on_progress)
    write_plots(result.out, result.record)
    write_culturespa_report(result.record, result.out)
    show_result(result.record)
    print(f"everything is in {result.out}")
