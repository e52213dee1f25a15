from kdml_med.api import Prediction, Run, evaluate, export, load_run, predict, train

__all__ = ["Prediction", "Run", "__version__", "evaluate", "export", "load_run", "predict", "train"]

__version__: str
