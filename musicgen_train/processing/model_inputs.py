"""The batch that tokenizer, feature extractor and processor return: a dict whose values are attributes, too."""

from __future__ import annotations

from collections import UserDict
from typing import Any, Self

import numpy as np
import torch


class BatchFeature(UserDict[str, Any]):
    """Holds model inputs by name. `batch["input_ids"]` and `batch.input_ids` are the same; `model(**batch)` works."""

    def __getattr__(self, name: str) -> Any:
        # `data` itself is absent while an instance is being unpickled or copied.
        values = self.__dict__.get("data", {})
        if name not in values:
            raise AttributeError(f"{type(self).__name__} has no {name!r}; it holds {sorted(values)}")
        return values[name]

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "data":
            super().__setattr__(name, value)
        else:
            self[name] = value

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move every tensor to a device, and floating-point ones to a dtype, in place.

        Args:
            args, kwargs: as for `Tensor.to`: a device, a dtype, or both, and `non_blocking`.

        Returns:
            This batch.

        Raises:
            TypeError: the dtype is not a floating-point one.
            RuntimeError: there is no such device.
        """
        device, dtype, non_blocking, _ = torch._C._nn._parse_to(*args, **kwargs)
        if dtype is not None and not dtype.is_floating_point:
            raise TypeError(f"dtype is {dtype}; fractions can only become another floating-point dtype")
        for name, value in self.data.items():
            if isinstance(value, torch.Tensor):
                target = dtype if value.is_floating_point() else None
                self.data[name] = value.to(device=device, dtype=target, non_blocking=non_blocking)
        return self


def to_requested_type(rows: Any, return_tensors: str | None) -> Any:
    """Turn nested lists or arrays into a torch tensor ("pt") or a numpy array ("np"), or leave them as they are (None).

    Args:
        rows: rows of one length, of whole numbers or of fractions.
        return_tensors: "pt", "np" or None.

    Returns:
        For "pt" and "np" a copy: int64 for whole numbers (and for empty rows), float32 for Python's floats and for
        float64, otherwise the dtype of the arrays given.

    Raises:
        ValueError: rows of different lengths cannot become one tensor; `return_tensors` is something else.
    """
    if return_tensors is None:
        return rows
    if return_tensors not in ("pt", "np"):
        raise ValueError(f"return_tensors is {return_tensors!r}; allowed are 'pt' (torch), 'np' (numpy) and None")
    try:
        array = np.array(rows)
    except ValueError as error:
        raise ValueError(
            "rows of different lengths cannot become one tensor; pass padding=True (and truncation=True with a "
            "max_length where rows may be cut)"
        ) from error
    if array.dtype == np.float64:
        # numpy makes an empty list float64, but rows without values are always token ids here.
        array = array.astype(np.float32 if array.size else np.int64)
    return torch.from_numpy(array) if return_tensors == "pt" else array
