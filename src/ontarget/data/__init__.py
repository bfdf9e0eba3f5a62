"""Reading, checking and splitting of the task's data. Light: pandas is imported on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

    from ontarget.task import Modality, Task
    from ontarget.values import Array, TargetData


def load(task: Task) -> TargetData:
    """The task's data, read, checked, split and fingerprinted.

    Raises DataError with all mistakes found, naming files, columns and rows; SettingError; MissingExtra.
    """
    from ontarget.data.target_data import load as load_target

    return load_target(task)


def read_inputs(
    source: Any, *, input_columns: tuple[str, ...] = (), modality: Modality | None = None
) -> tuple[Any, Array]:
    """Inputs to predict and their rows (N,) int64; no target is needed.

    source: as `Task.data`, or a list or array of inputs. input_columns: as in training. Raises DataError.
    """
    from ontarget.data.target_data import read_inputs as read

    return read(source, input_columns=input_columns, modality=modality)


def read_table(source: Any) -> pd.DataFrame:
    """The rows of any source that `Task.data` takes, as a DataFrame. Raises DataError, MissingExtra."""
    from ontarget.data.read import read_table as read

    return read(source)
