"""Machines that are made of stand-ins."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from stand_ins import Clone, Machine


@pytest.fixture
def machine(tmp_path):
    """A machine without NPUs and CANN."""
    return Machine(tmp_path)


@pytest.fixture
def cluster(machine):
    """A machine with NPUs, msrun, and CANN."""
    machine.add_npus()
    return machine


@pytest.fixture
def clone(tmp_path):
    """A machine with a copy of the scripts that have not built their .venv yet."""
    return Clone(tmp_path)
