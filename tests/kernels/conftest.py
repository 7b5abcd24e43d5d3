"""One body of a test for the interpreter and for the GPU: `pytest -m gpu` runs the second."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA or ROCm device")
    return torch.device(request.param)
