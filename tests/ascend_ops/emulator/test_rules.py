"""Every rule of the emulator reports a small kernel that breaks it, and no kernel that breaks none."""

import subprocess
from pathlib import Path

import pytest

from ascend_ops import native
from ascend_ops.emulator.build import HERE

CORES = ("__NPU_ARCH__=1001", "__NPU_ARCH__=2201", "__CCE_AICORE__=100", "__CCE_AICORE__=220")


@pytest.fixture(scope="module", params=CORES)
def verdicts(request, tmp_path_factory):
    """Returns name → (expected rule, reported rule, message) for the kernels in rules.cpp."""
    program = tmp_path_factory.mktemp("rules") / "rules"
    source = Path(__file__).with_name("rules.cpp")
    flags = ["-std=c++17", "-O1", "-pthread", f"-D{request.param}", f"-I{HERE / 'include'}"]
    subprocess.run([native.compiler(), *flags, str(source), "-o", str(program)], check=True)
    done = subprocess.run([str(program)], capture_output=True, text=True, check=True, timeout=120)
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    return {name: (expected, reported, message) for name, expected, reported, message in lines}


def test_every_kernel_breaks_the_rule_that_it_is_written_for(verdicts):
    wrong = {name: each for name, each in verdicts.items() if each[0] != each[1]}

    assert not wrong
    assert len(verdicts) > 65


def test_every_rule_has_a_kernel_that_breaks_it(verdicts):
    rules = (HERE / "machine" / "rules.h").read_text().split("namespace rule {")[1].split("}  // namespace rule")[0]

    names = {line.split('"')[1] for line in rules.splitlines() if '"' in line}

    # op-host is about definition and tiling: test_host.py
    assert names - {"op-host"} == {expected for expected, _, _ in verdicts.values()} - {""}


@pytest.mark.parametrize(
    ("kernel", "words"),
    [
        ("scalar_reads_before_the_load_is_done", "core 0: GetValue (S) reads UB bytes 0…, which MTE2 wrote"),
        ("cores_write_one_granule", "byte 0 of out"),
        ("a_core_does_not_come", "3 cores wait in SyncAll"),
        ("past_a_global_tensor", "64 elements of a GlobalTensor that has 8"),
        ("more_than_the_unified_buffer", "InitBuffer of 133120 bytes"),
    ],
)
def test_messages_name_the_violation(verdicts, kernel, words):
    assert words in verdicts[kernel][2]
