"""The report that an experiment ends with: `report.md` and a self-contained `report.html`."""

from jaxalign.report.culture import culture_report
from jaxalign.report.soft_prompt import soft_prompt_report

__all__ = ["culture_report", "soft_prompt_report"]
