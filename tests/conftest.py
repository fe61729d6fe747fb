"""What every test may ask for."""

import os
from collections.abc import Iterator
from pathlib import Path

import jaxtyping
import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("uadt", deadline=None)  # a slow machine is no fault
settings.load_profile("uadt")


@pytest.fixture
def shapes_unchecked() -> Iterator[None]:
    """Switch off the enforced shapes: a user runs without them and meets our own errors."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Return the folder of real retinal images and records, or skip with the reason."""
    folder = os.environ.get("UADT_TEST_DATA")
    if not folder:
        pytest.skip("UADT_TEST_DATA names no folder of real retinal images and records")
    return Path(folder).resolve()
