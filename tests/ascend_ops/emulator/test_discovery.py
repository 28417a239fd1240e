"""The emulator finds the kernels of every operator by their folders."""

import importlib
from types import SimpleNamespace

import pytest

from ascend_ops import emulator
from ascend_ops.emulator import kernels as emulator_kernels
from ascend_ops.emulator.build import OPERATORS


@pytest.fixture
def fresh(monkeypatch):
    """Clears the cache of discovered kernels before and after each test."""
    emulator_kernels.kernels.cache_clear()
    yield
    emulator_kernels.kernels.cache_clear()


def test_every_kernel_is_described_with_a_check_and_a_mutant_of_its_operator():
    sources = {path.stem for path in OPERATORS.glob("*/ascend/op_kernel/*.cpp")}

    kernels = emulator_kernels.kernels()

    assert set(kernels) == sources
    assert all(kernel.checks for kernel in kernels.values())
    mutated = {emulator.KERNELS[name] for name, kernel in kernels.items() if kernel.mutants}
    assert mutated == set(emulator.KERNELS.values())


def test_a_new_folder_is_found_by_itself(fresh, monkeypatch):
    described = SimpleNamespace(name="rre_new")
    importing = importlib.import_module
    monkeypatch.setattr(
        importlib,
        "import_module",
        lambda name: SimpleNamespace(KERNELS=(described,)) if name == "ascend_ops.new.emulation" else importing(name),
    )
    monkeypatch.setitem(emulator_kernels.KERNELS, "rre_new", "new")

    kernels = emulator_kernels.kernels()

    assert kernels["rre_new"] is described


def test_kernels_that_nobody_describes_are_named(fresh, monkeypatch):
    monkeypatch.setitem(emulator_kernels.KERNELS, "rre_new", "rre_combine")
    with pytest.raises(
        emulator.EmulatorError, match=r"rre_combine/emulation.py describes rre_combine; .* has .*rre_new"
    ):
        emulator_kernels.kernels()


def test_a_folder_without_its_description_is_named(fresh, monkeypatch):
    monkeypatch.setitem(emulator_kernels.KERNELS, "rre_new", "expert_adam")
    with pytest.raises(emulator.EmulatorError, match=r"expert_adam has kernels, but no emulation\.py"):
        emulator_kernels.kernels()
