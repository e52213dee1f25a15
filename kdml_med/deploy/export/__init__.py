"""Trained networks as files that other programs run: the model that was evaluated, from pixels to answers."""

from kdml_med.deploy.export.running import ExportReport, export_run

__all__ = ["ExportReport", "export_run"]
