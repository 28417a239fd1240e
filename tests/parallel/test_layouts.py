"""Every layout of processes trains like one process (gradients, losses, weights) and exchanges the planned rows."""

import numpy as np
import pytest
from training_worker import whole

STEPS = 30
FEW_STEPS = 8  # many processes on two cores take a minute for them

# relative tolerances
GRADIENTS = 1e-5
LOSSES = 1e-5
WEIGHTS = 1e-4


def mesh(data, tensor=1, expert=1, **more):
    return {
        "parallelism__data_parallel": str(data),
        "parallelism__tensor_parallel": str(tensor),
        "parallelism__expert_parallel": str(expert),
    } | more


TWO = {"data": mesh(2), "tensor": mesh(1, 2), "expert": mesh(2, 1, 2)}
FOUR = {
    "data 4": mesh(4),
    "tensor 4": mesh(1, 4),
    "expert 4": mesh(4, 1, 4),
    "data × expert": mesh(4, 1, 2),
    "tensor × expert": mesh(2, 2, 2),
    "data × tensor": mesh(2, 2),
    "data, whole moments": mesh(4, parallelism__optimizer_sharding="false"),
}
WITHOUT_ECSS = {"experts__mode": "device"}
FROZEN = {
    "training__train": "experts:zh,code",
    "training__max_norm": "0.02",
    "data__mixture": "{bilingual: 0, zh: 1, en: 0, code: 1}",
}
STAGED = {"experts__staging": "true"}
GROUPS = {"data__domain_groups": "2"}
MIXED = {"data__schedule": "mixed", "data__domains_per_step": "4"}


def assert_same(trained, ranks, layout, steps=STEPS, mixed=False, norm=0.5, **options):
    """Trains with a layout and with one process, compares them, and returns the results of the layout's ranks.

    `mixed`: see training_worker.py. `norm`: training.max_norm.
    """
    (one,), expected = whole(trained(1, steps, **options), 1)
    if mixed:
        layout = layout | {"mixed": True}
    results, actual = whole(trained(ranks, steps, **layout, **options), ranks)

    assert not any(one["skipped"])
    for each in results:
        for item in ("losses", "norms", "skipped"):
            assert each[item] == results[0][item]  # all ranks compute and decide the same
        assert each["bytes_sent"] == each["bytes_planned"]
    np.testing.assert_allclose(results[0]["losses"], one["losses"], rtol=LOSSES)
    assert min(one["norms"]) > norm  # clipped in every step
    assert set(actual) == set(expected)
    for name, tensor in expected.items():
        if name.endswith("key.bias"):
            continue  # its true gradient is zero
        bound = GRADIENTS if name.startswith("gradient/") else WEIGHTS
        error = np.linalg.norm(actual[name] - tensor)
        assert error <= bound * np.linalg.norm(tensor), (name, error / np.linalg.norm(tensor))
    return results


@pytest.mark.parametrize(
    "layout", ["expert", *(pytest.param(name, marks=pytest.mark.slow) for name in ("data", "tensor"))]
)
def test_two_processes_equal_one(trained, layout):
    """Ranks that share experts are also data-parallel."""
    results = assert_same(trained, 2, TWO[layout], FEW_STEPS)
    assert (results[0]["bytes_sent"] > 0) == (layout == "expert")


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, WITHOUT_ECSS], ids=["ecss", "device"])
@pytest.mark.parametrize("layout", FOUR)
def test_four_processes_equal_one(trained, layout, options):
    assert_same(trained, 4, FOUR[layout], FEW_STEPS, **options)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["data × expert", "tensor × expert"])
def test_four_processes_equal_one_for_many_steps(trained, layout):
    assert_same(trained, 4, FOUR[layout])


@pytest.mark.slow
@pytest.mark.parametrize("layout", TWO)
def test_in_half_precision_all_ranks_skip_what_overflows_on_one(trained, layout):
    options = {"context__precision": "fp16", "training__loss_scale": str(2.0**28)}
    (one,), _ = whole(trained(1, 2 * FEW_STEPS, **options), 1)

    results, _ = whole(trained(2, 2 * FEW_STEPS, **TWO[layout], **options), 2)

    assert one["skipped"][0]
    assert not one["skipped"][-1]
    for each in results:
        assert each["skipped"] == one["skipped"]
        np.testing.assert_allclose(each["losses"], one["losses"], rtol=2e-3)  # fp16 has 11 bits


@pytest.mark.slow
def test_processes_equal_one_with_staged_experts(trained):
    assert_same(trained, 4, FOUR["data × expert"], FEW_STEPS, **STAGED)


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "layout"), [*((2, each) for each in TWO.values()), (4, FOUR["tensor × expert"])])
def test_only_experts_are_trained(trained, ranks, layout):
    assert_same(trained, ranks, layout, FEW_STEPS, norm=0.02, **FROZEN)


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "layout"), [(2, TWO["tensor"]), (2, TWO["expert"]), (4, FOUR["tensor × expert"])])
def test_processes_equal_one_for_pangu_pi(trained, pangu_pi, ranks, layout):
    options = {key.replace(".", "__"): value for key, value in pangu_pi.items()}
    assert_same(trained, ranks, layout, FEW_STEPS, **options)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, WITHOUT_ECSS], ids=["ecss", "device"])
@pytest.mark.parametrize("layout", TWO)
def test_two_processes_equal_one_for_many_steps(trained, layout, options):
    assert_same(trained, 2, TWO[layout], **options)


@pytest.mark.slow
@pytest.mark.parametrize("options", [GROUPS, MIXED], ids=["groups", "mixed"])
@pytest.mark.parametrize(("ranks", "layout"), [(2, mesh(2, 1, 2)), (4, mesh(4, 1, 4)), (4, mesh(2, 2, 2))])
def test_processes_equal_one_for_every_schedule(trained, ranks, layout, options):
    results = assert_same(trained, ranks, layout, FEW_STEPS, **options)
    for each in results:
        assert each["peers"] == int(layout["parallelism__expert_parallel"]) // (2 if options is GROUPS else 1) - 1


@pytest.mark.slow
def test_a_global_exchange_equals_that_of_sub_groups(trained):
    """Compares sub-groups of 2 with a domain each and an exchange among all 4 ranks, on the same samples."""
    results = assert_same(trained, 4, mesh(4, 1, 4), FEW_STEPS, **GROUPS, mixed=True)
    assert all(each["peers"] == 3 for each in results)
