"""The run's report: one self-contained HTML file, made from the files of a run folder alone."""

from aecnn.evaluation.report.page import report_without_images, write_report

__all__ = ["report_without_images", "write_report"]
