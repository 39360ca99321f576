"""Real pictures in: folders, tables, arrays and embedded sets, as examples ready to train on."""

from sfumato.data.dataset import Dataset
from sfumato.data.options import DataError, DataOptions, Skipped
from sfumato.data.sources import open_data

__all__ = ["DataError", "DataOptions", "Dataset", "Skipped", "open_data"]
