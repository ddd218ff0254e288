"""What the tests share: the real model, loaded once, and tiny random models of other architectures."""

import os

os.environ.setdefault("TQDM_DISABLE", "1")  # progress bars would end up in outputs that are compared

import pytest

from course_utils import load_model


@pytest.fixture(scope="session")
def lm():
    """SmolLM2, the real thing, from the cache (fetched and converted on the first run)."""
    return load_model("smollm2")
