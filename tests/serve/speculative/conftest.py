"""Tiny random targets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ontarget.testing.tiny_llama import tiny_llama as make


@pytest.fixture
def tiny_llama() -> Callable[..., Any]:
    return make
