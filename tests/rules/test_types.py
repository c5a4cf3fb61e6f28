"""Tests that are not slow check types and shapes: a wrong one is an error where it enters a function."""

import pytest
import torch
from jaxtyping import TypeCheckError

from memscope.base.words import visible
from memscope.model.ops.product_keys import selection_margin


def test_a_wrong_type_is_an_error() -> None:
    assert visible(" a") == "␣a"
    with pytest.raises(TypeCheckError, match="parameter"):
        visible(3)


@pytest.mark.parametrize("best", [torch.zeros(2, 3, dtype=torch.int64), torch.tensor(1.0)])
def test_a_wrong_kind_or_shape_of_tensor_is_an_error(best: torch.Tensor) -> None:
    with pytest.raises(TypeCheckError, match="parameter 'best'"):
        selection_margin(best, 1)
