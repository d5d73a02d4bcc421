"""The report: one self-contained HTML file that shows how well a model fits."""

from quarflow.report.page import write_report

__all__ = ["write_report"]
