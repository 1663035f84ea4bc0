"""The reports that commands write: `report.md` and a self-contained `report.html`."""

from jaxalign.commands.reports.cultural_bench import cultural_bench_report
from jaxalign.commands.reports.soft_prompt import soft_prompt_report
from jaxalign.commands.reports.survey import survey_report

__all__ = ["cultural_bench_report", "soft_prompt_report", "survey_report"]
