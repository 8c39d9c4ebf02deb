"""Intervals hold what they promise; figures refuse what is none."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from pydantic import ValidationError

from greenllm.bench.measurement import (
    Measurement,
    bootstrap,
    counted,
    log_mean,
    log_ratio,
    quotient,
    repeat_interval,
    sitting_means,
    t_interval,
)


def covered(trials, draw, truth):
    """Share of intervals that hold the truth."""
    return np.mean([lo <= truth <= hi for lo, hi in (draw(i) for i in range(trials))])


def test_student_interval_covers_the_mean_of_few_normal_samples():
    rng = np.random.default_rng(1)
    share = covered(2000, lambda _: t_interval(rng.normal(7, 2, 5).tolist()), 7)
    assert 0.935 < share < 0.965


def test_paired_ratio_covers_the_truth_under_shared_drift():
    rng = np.random.default_rng(2)

    def draw(_):
        drift = np.exp(rng.normal(0, 0.5, 5))  # the machine slows down for both
        a, b = 3 * drift * np.exp(rng.normal(0, 0.02, 5)), drift * np.exp(rng.normal(0, 0.02, 5))
        return log_ratio(a, b, "test").ci95

    assert 0.93 < covered(1000, draw, 3.0) < 0.97
    lo, hi = draw(0)
    assert hi / lo < 1.2  # drift of 50 % does not widen it


def test_bootstrap_covers_a_skewed_mean():
    rng = np.random.default_rng(3)
    share = covered(200, lambda _: bootstrap(rng.exponential(1.0, 60).tolist(), "", "test").ci95, 1.0)
    assert share > 0.88


def test_quotient_of_independent_figures_covers_the_truth():
    rng = np.random.default_rng(5)

    def draw(_):
        a, b = (log_mean(m * np.exp(rng.normal(0, 0.1, 8)), "J", "test") for m in (10, 4))
        return quotient(a, b).ci95

    assert 0.93 < covered(1000, draw, 2.5) < 0.99


def test_quotient_of_what_is_not_positive_does_not_exist():
    assert quotient(counted(1, "J"), counted(0, "J")) is None
    assert quotient(counted(-1, "J"), counted(2, "J")) is None


def test_one_sample_has_no_interval():
    assert log_mean([3.0], "", "test").ci95 is None
    assert bootstrap([3.0], "", "test").ci95 is None


def test_equal_samples_have_an_interval_without_width():
    assert bootstrap([0.5] * 9, "", "test").ci95 == (0.5, 0.5)
    assert 1.0 in log_ratio([4.0, 5.0], [4.0, 5.0], "test")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_figure_is_a_number(value):
    with pytest.raises(ValidationError):
        Measurement(value=value, unit="", n=1, method="test")


def test_a_figure_is_frozen():
    with pytest.raises(ValidationError):
        counted(1, "MB").value = 2


def test_tokens_of_a_round_share_its_luck():
    """The same model twice, rounds 5 % lucky or not, many tokens in each: percentiles must not be told apart."""
    from greenllm.bench.latency import Query, Rounds

    rng = np.random.default_rng(6)

    def rounds():
        luck = np.exp(rng.normal(0, 0.05, 6))
        return Rounds(8, [[Query(0.1, (0.01 * k * np.exp(rng.normal(0, 0.1, 63))).tolist())] for k in luck])

    def draw(name):
        return log_ratio(rounds().samples()[name], rounds().samples()[name], "test").ci95

    for name in ("token_p50", "token_p95", "decode"):
        assert covered(300, lambda _, name=name: draw(name), 1.0) > 0.9
    found = rounds().measurements()
    assert found["token_p50"].ci95 is not None
    assert found["token_p99"].ci95 is None  # 63 tokens a round have none beyond it


def test_means_of_sittings_cover_what_a_drifting_machine_does_on_average():
    """Rounds of one second of a machine that drifts over half a minute, in five sittings a minute apart: their
    interval covers its mean nearly always, and Student's t of the same rounds does not.
    """
    spread, keeps = 0.07, math.exp(-1 / 30)
    plain = sitting = 0
    for seed in range(400):
        rng = np.random.default_rng(seed)
        slow = [rng.normal(0, spread)]
        for _ in range(300):
            slow.append(keeps * slow[-1] + rng.normal(0, spread * math.sqrt(1 - keeps**2)))
        rounds = [(math.exp(slow[60 * s + i] + rng.normal(0, 0.02)), s) for s in range(5) for i in range(8)]
        samples, where = [s for s, _ in rounds], [w for _, w in rounds]
        sitting += 1.0 in log_mean(samples, "", "", where)
        plain += 1.0 in log_mean(samples, "", "")
    assert plain / 400 < 0.75
    assert sitting / 400 > 0.96


def test_another_run_lies_in_the_interval_of_a_repeat():
    """Two runs of five sittings each: a mean lies in the other's interval as often as is said."""
    rng = np.random.default_rng(0)
    runs = [np.exp(rng.normal(0, 0.05, 5)).tolist() for _ in range(2000)]
    found = [log_mean(r, "", "", range(5)) for r in runs]
    there = sum(b.value in a for a, b in itertools.pairwise(found)) / (len(found) - 1)
    assert 0.935 < there < 0.965
    mean = [log_mean(r, "", "") for r in runs]
    assert sum(b.value in a for a, b in itertools.pairwise(mean)) / (len(mean) - 1) < 0.9
    assert repeat_interval([1.0]) is None
    assert repeat_interval([2.0, 2.0]) == (2.0, 2.0)


def test_a_sitting_counts_once():
    found = log_mean([1.0, 1.0, 1.0, 4.0], "", "", [1, 1, 1, 2])
    assert found.value == pytest.approx(2.0)
    assert found.n == 2
    assert sitting_means([1.0, 2.0, 6.0], [1, 1, 2]) == [1.5, 6.0]
    assert log_mean([1.0, 2.0], "", "", [1, 1]).ci95 is None
    assert log_mean([2.0] * 4, "", "", [1, 1, 2, 2]).ci95 == pytest.approx((2.0, 2.0))
