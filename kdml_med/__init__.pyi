from kdml_med.api import Prediction, Run, evaluate, export, load_run, predict, train, write_report

__all__ = ["Prediction", "Run", "__version__", "evaluate", "export", "load_run", "predict", "train", "write_report"]

__version__: str
