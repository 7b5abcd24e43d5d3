"""Latencies and throughput, against numbers computed by hand."""

from __future__ import annotations

import pytest

from mlalab.serving.metrics import Latency, RequestTimes, Summary, latency, summarise


def test_the_latencies_of_a_request():
    times = RequestTimes(1.0, (1.5, 1.75, 2.5))
    assert (times.ttft_s, times.itl_s, times.tpot_s) == (0.5, (0.25, 0.75), 0.5)
    assert times.end_s == 1.5


def test_one_token_has_no_gap():
    times = RequestTimes(1.0, (3.0,))
    assert (times.ttft_s, times.itl_s, times.tpot_s, times.end_s) == (2.0, (), None, 2.0)


def test_no_token_has_no_latency():
    times = RequestTimes(1.0, ())
    assert (times.ttft_s, times.itl_s, times.tpot_s, times.end_s) == (None, (), None, None)


def test_mean_median_and_percentile():
    assert latency([]) is None
    assert latency([2.0]) == Latency(2.0, 2.0, 2.0)
    told = latency([float(x) for x in range(101)][::-1])
    assert told == Latency(50.0, 50.0, 99.0)
    # Between two samples it interpolates.
    assert latency([0.0, 1.0]) == Latency(0.5, 0.5, 0.99)
    assert latency([0.0, 0.0, 3.0]) == Latency(1.0, 0.0, pytest.approx(2.94))


def test_the_summary_of_a_run():
    times = [
        RequestTimes(0.0, (1.0, 2.0, 4.0)),
        RequestTimes(0.5, (2.0,)),
        RequestTimes(1.0, (1.25, 1.5)),
    ]
    assert summarise(times) == Summary(
        requests=3,
        output_tokens=6,
        duration_s=4.0,
        requests_per_s=0.75,
        output_tokens_per_s=1.5,
        ttft=latency([1.0, 1.5, 0.25]),
        tpot=latency([1.5, 0.25]),
        itl=latency([1.0, 2.0, 0.25]),
        end=latency([4.0, 1.5, 0.5]),
    )


def test_the_gaps_of_long_requests_weigh_more_than_their_means():
    """ITL is over gaps, TPOT over requests."""
    summary = summarise([RequestTimes(0.0, (0.0, 1.0, 2.0, 3.0)), RequestTimes(0.0, (0.0, 5.0))])
    assert summary.itl.mean == 2.0
    assert summary.tpot.mean == 3.0


def test_one_token_outputs_have_no_gap_to_summarise():
    summary = summarise([RequestTimes(0.0, (1.0,))])
    assert (summary.itl, summary.tpot) == (None, None)
    assert summary.ttft == Latency(1.0, 1.0, 1.0)


def test_no_request_at_all():
    assert summarise([]) == Summary(0, 0, 0.0, 0.0, 0.0, None, None, None, None)
