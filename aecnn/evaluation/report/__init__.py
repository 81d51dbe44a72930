"""The run's report: one self-contained HTML file, made from the files of a run folder alone."""

from aecnn.evaluation.report.page import write_report

__all__ = ["write_report"]
