"""A page that shows what the experts of a run do: one HTML file with everything in it."""

from factorized_moe.interpret.report.data import ReportData
from factorized_moe.interpret.report.exporting import report_json
from factorized_moe.interpret.report.layer import LayerSummary
from factorized_moe.interpret.report.page import report_page, write_report
from factorized_moe.interpret.report.run_files import load_run, save_run
from factorized_moe.interpret.report.samples import Images, Patches, Texts

__all__ = [
    "Images",
    "LayerSummary",
    "Patches",
    "ReportData",
    "Texts",
    "load_run",
    "report_json",
    "report_page",
    "save_run",
    "write_report",
]
