"""Real pictures in: folders, tables, arrays and embedded sets, as examples ready to train on."""

from .dataset import Dataset
from .options import DataError, DataOptions, Skipped
from .sources import open_data

__all__ = ["DataError", "DataOptions", "Dataset", "Skipped", "open_data"]
