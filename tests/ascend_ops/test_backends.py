"""The choice of a backend: the fastest available one, with a warning if it is missing, or the requested one."""

import json
import logging

import pytest

import ascend_ops.grouped_ffn.ascend
from ascend_ops import backends, native
from ascend_ops.ascend import operators


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.delenv(backends.VARIABLE, raising=False)
    monkeypatch.setattr(backends, "chosen", {})
    monkeypatch.setattr(backends, "_noticed", set())


@pytest.fixture
def no_compiler(monkeypatch):
    def library(operator):
        raise native.CompileError("no C++ compiler: g++ is not on PATH")

    monkeypatch.setattr(native, "library", library)


def test_without_a_compiler_the_composed_form_is_used_with_one_warning(no_compiler, caplog):
    with caplog.at_level(logging.WARNING):
        modules = [backends.choose(operator).__name__ for operator in ("rre_combine", "rre_regroup")]

    assert modules == ["ascend_ops.rre_combine.composed", "ascend_ops.rre_regroup.composed"]
    notices = [record.getMessage() for record in caplog.records]
    assert notices == ["using the slower composed operators: no C++ compiler: g++ is not on PATH"]
    assert backends.describe() == "composed (rre_combine, rre_regroup)"


def test_asking_for_an_unavailable_backend_is_an_error(no_compiler, monkeypatch):
    monkeypatch.setenv(backends.VARIABLE, "cpu")
    with pytest.raises(native.CompileError, match="no C"):
        backends.choose("rre_combine")


def test_asking_for_the_composed_form_needs_no_compiler(no_compiler, monkeypatch, caplog):
    monkeypatch.setenv(backends.VARIABLE, "composed")

    assert backends.choose("rre_combine").__name__ == "ascend_ops.rre_combine.composed"
    assert not caplog.records


def test_on_an_npu_without_the_operator_package_the_composed_form_is_used(monkeypatch, caplog, tmp_path):
    monkeypatch.setattr(backends, "_device_target", lambda: "Ascend")
    monkeypatch.setattr(operators, "PACKAGE", tmp_path / "none")
    monkeypatch.delenv(operators.VARIABLE, raising=False)

    with caplog.at_level(logging.WARNING):
        assert backends.choose("rre_combine").__name__ == "ascend_ops.rre_combine.composed"

    assert "build it with bash ascend_ops/build_opp.sh" in caplog.text
    monkeypatch.setenv(backends.VARIABLE, "ascend")
    with pytest.raises(native.OperatorError, match="no operator package"):
        backends.choose("rre_combine")


def test_forms_made_of_mindspores_own_operators_need_no_package(monkeypatch, tmp_path):
    monkeypatch.setattr(backends, "_device_target", lambda: "Ascend")
    monkeypatch.setattr(operators, "PACKAGE", tmp_path / "none")
    monkeypatch.delenv(operators.VARIABLE, raising=False)

    monkeypatch.setattr(ascend_ops.grouped_ffn.ascend, "ON_THIS_CHIP", True)

    assert backends.choose("grouped_ffn").__name__ == "ascend_ops.grouped_ffn.ascend"
    assert backends.choose("grouped_all_to_all").__name__ == "ascend_ops.grouped_all_to_all.ascend"


@pytest.fixture
def package(monkeypatch, tmp_path):
    """Simulates an NPU with an operator package."""
    monkeypatch.setattr(backends, "_device_target", lambda: "Ascend")
    monkeypatch.setattr(operators, "PACKAGE", tmp_path)
    monkeypatch.delenv(operators.VARIABLE, raising=False)
    config = tmp_path / "op_impl/ai_core/tbe/config/ascend910/aic-ascend910-ops-info.json"
    config.parent.mkdir(parents=True)
    config.write_text(json.dumps({"RreCombine": {}}))


def test_on_an_npu_with_the_operator_package_the_ascend_form_is_used(package):
    assert backends.choose("rre_combine").__name__ == "ascend_ops.rre_combine.ascend"


def test_a_package_without_the_kernels_of_an_operator_is_not_used_for_it(package, caplog):
    with caplog.at_level(logging.WARNING):
        assert backends.choose("rre_regroup").__name__ == "ascend_ops.rre_regroup.composed"
    assert "no operator package with RreRegroup, RreRegroupBack in" in caplog.text


def test_the_emulated_kernels_are_used_if_asked_for(monkeypatch):
    monkeypatch.setenv(backends.VARIABLE, "ascend")

    assert backends.choose("rre_combine").__name__ == "ascend_ops.rre_combine.ascend"
    assert backends.choose("expert_adam", "CPU").__name__ == "ascend_ops.expert_adam.cpu"
    # MindSpore's GroupedMatmul does not exist on the CPU
    assert backends.choose("grouped_ffn").__name__ == "ascend_ops.grouped_ffn.cpu"


def test_a_chip_without_grouped_matmul_uses_the_composed_form(monkeypatch, package):
    assert backends.choose("grouped_ffn").__name__ == "ascend_ops.grouped_ffn.composed"
    monkeypatch.setattr(ascend_ops.grouped_ffn.ascend, "ON_THIS_CHIP", True)
    assert backends.choose("grouped_ffn").__name__ == "ascend_ops.grouped_ffn.ascend"


def test_an_unknown_backend_is_refused(monkeypatch):
    monkeypatch.setenv(backends.VARIABLE, "fast")
    with pytest.raises(
        native.OperatorError, match="MINDPANGU_OPS asks for 'fast': allowed is composed or cpu or ascend"
    ):
        backends.choose("rre_combine")


def test_single_operators_can_be_overridden(monkeypatch):
    monkeypatch.setenv(backends.VARIABLE, " causal_attention=composed, tied_head_loss = cpu ")

    chosen = [backends.choose(operator).__name__ for operator in ("causal_attention", "tied_head_loss", "norm")]

    assert chosen == ["ascend_ops.causal_attention.composed", "ascend_ops.tied_head_loss.cpu", "ascend_ops.norm.cpu"]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("attention=composed", "'attention=composed' is not operator=backend; the operators are causal_attention, "),
        ("norm=fast", "MINDPANGU_OPS asks for 'norm=fast': allowed is"),
        ("norm=", "MINDPANGU_OPS asks for 'norm=': allowed is"),
        ("norm=cpu,composed", "'composed' is not operator=backend"),
        ("norm=cpu,", "'' is not operator=backend"),
        ("norm=cpu,norm=composed", "names norm twice"),
    ],
)
def test_a_list_with_a_mistake_is_refused_by_every_operator(monkeypatch, value, message):
    monkeypatch.setenv(backends.VARIABLE, value)
    with pytest.raises(native.OperatorError, match=message):
        backends.choose("rre_combine")
