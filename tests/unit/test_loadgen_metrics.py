"""Numbers from timelines made by hand, and timelines from chunks made by hand."""

import pytest

from octavo_loadgen.answer import EventReader, error_code_of, note_chunk
from octavo_loadgen.metrics import is_good, quantiles_of, summary_of
from octavo_loadgen.scenario import Objectives
from octavo_loadgen.timeline import OVERRUN, TRUNCATED, UNDECODABLE, Timeline


def answered(
    scheduled_ms: float = 1000.0,
    sent_ms: float = 1000.0,
    text_ms: tuple[float, ...] = (1100.0, 1150.0, 1250.0),
    ended_ms: float = 1260.0,
    num_tokens: int = 5,
    tier: str = "resident",
) -> Timeline:
    timeline = Timeline(scheduled_ms, sent_ms, list(text_ms), ended_ms, None, num_tokens, tier)
    timeline.complete(ended_ms)
    return timeline


def failed(code: str) -> Timeline:
    timeline = Timeline(1000.0)
    timeline.fail(code, 1001.0)
    return timeline


def test_durations_are_those_of_the_glossary() -> None:
    timeline = answered()
    assert timeline.ttft_ms == 100.0
    assert timeline.end_to_end_ms == 260.0
    assert timeline.tpot_ms == 160.0 / 4
    assert timeline.itl_ms == [50.0, 100.0]


def test_late_send_counts_in_the_time_to_first_token() -> None:
    timeline = answered(scheduled_ms=200.0)
    assert timeline.send_lag_ms == 800.0
    assert timeline.ttft_ms == 900.0
    assert timeline.end_to_end_ms == 1060.0


def test_answer_without_text_has_its_first_token_when_it_finishes() -> None:
    timeline = answered(text_ms=(), num_tokens=1)
    assert timeline.ttft_ms == 260.0
    assert timeline.tpot_ms is None
    assert timeline.itl_ms == []


def test_stream_that_ends_without_a_finish_reason_is_an_error() -> None:
    timeline = Timeline(0.0, 0.0, [1.0])
    timeline.complete(2.0)
    assert timeline.error == TRUNCATED


def test_what_ended_first_stays() -> None:
    timeline = answered()
    timeline.fail("client_deadline", 9999.0)
    assert (timeline.error, timeline.ended_ms) == (None, 1260.0)


def test_quantiles_are_nearest_rank() -> None:
    quantiles = quantiles_of([float(value) for value in range(100, 0, -1)])
    assert (quantiles.num, quantiles.p50, quantiles.p95, quantiles.p99, quantiles.max) == (100, 50.0, 95.0, 99.0, 100.0)
    assert quantiles_of([7.0]).p50 == quantiles_of([7.0, None]).p99 == 7.0
    assert quantiles_of([]).p99 is None


def test_summary_counts_every_arrival_and_times_only_complete_ones() -> None:
    timelines = [answered(), answered(tier="cold", text_ms=(1500.0,), ended_ms=1500.0, num_tokens=1)]
    timelines += [failed("overloaded"), failed(OVERRUN), failed(OVERRUN)]
    summary = summary_of(timelines, 2000.0, Objectives(ttft_ms=200.0))
    assert (summary.num_requests, summary.num_complete, summary.num_tokens) == (5, 2, 6)
    assert (summary.requests_per_s, summary.tokens_per_s) == (1.0, 3.0)
    assert (summary.goodput_per_s, summary.goodput_share, summary.errors_share) == (0.5, 0.2, 0.6)
    assert summary.errors == {OVERRUN: 2, "overloaded": 1}
    assert summary.tiers == {"cold": 1, "resident": 1}
    assert (summary.ttft_ms.num, summary.ttft_ms.max) == (2, 500.0)
    assert (summary.cold_start_ttft_ms.num, summary.cold_start_ttft_ms.p50) == (1, 500.0)
    assert (summary.ttft_without_cold_ms.num, summary.ttft_without_cold_ms.max) == (1, 100.0)
    assert (summary.itl_ms.num, summary.itl_ms.max) == (2, 100.0)


def test_summary_of_nothing_divides_by_nothing() -> None:
    summary = summary_of([], 0.0, Objectives())
    assert (summary.requests_per_s, summary.goodput_share, summary.ttft_ms.num) == (0.0, 0.0, 0)


@pytest.mark.parametrize(
    ("objectives", "expected"),
    [
        (Objectives(), True),
        (Objectives(ttft_ms=100.0, tpot_ms=40.0, itl_ms=100.0, end_to_end_ms=260.0), True),
        (Objectives(ttft_ms=99.0), False),
        (Objectives(tpot_ms=39.0), False),
        (Objectives(itl_ms=99.0), False),
        (Objectives(end_to_end_ms=259.0), False),
    ],
)
def test_request_is_good_when_it_met_every_objective(objectives: Objectives, expected: bool) -> None:
    assert is_good(answered(), objectives) is expected


def test_cold_start_has_an_objective_of_its_own() -> None:
    objectives = Objectives(ttft_ms=50.0, cold_start_ttft_ms=150.0)
    assert is_good(answered(tier="cold"), objectives)
    assert not is_good(answered(), objectives)


def test_failed_request_is_never_good() -> None:
    assert not is_good(failed("overloaded"), Objectives())


def test_chunks_become_a_timeline_and_usage_overrules_the_count() -> None:
    timeline = Timeline(0.0, 0.0)
    note_chunk(timeline, b'{"choices":[{"delta":{"role":"assistant","content":""},"finish_reason":null}]}', 1.0)
    note_chunk(timeline, b'{"choices":[{"delta":{"content":"a"},"finish_reason":null}],"usage":null}', 2.0)
    note_chunk(timeline, b'{"choices":[{"delta":{},"finish_reason":"stop"}]}', 3.0)
    assert (timeline.text_ms, timeline.finish_ms, timeline.num_tokens) == ([2.0], 3.0, 1)
    note_chunk(timeline, b'{"choices":[],"usage":{"completion_tokens":4}}', 4.0)
    assert timeline.num_tokens == 4
    assert timeline.ended_ms is None


@pytest.mark.parametrize(
    ("data", "code"),
    [(b'{"error":{"code":"worker_lost"}}', "worker_lost"), (b"{", UNDECODABLE), (b'{"choices":7}', UNDECODABLE)],
)
def test_error_or_nonsense_ends_the_timeline(data: bytes, code: str) -> None:
    timeline = Timeline(0.0, 0.0)
    note_chunk(timeline, data, 5.0)
    assert (timeline.error, timeline.ended_ms) == (code, 5.0)


def test_error_body_without_a_code_is_named_by_its_status() -> None:
    assert error_code_of(b'{"error":{"code":"overloaded"}}', 429) == "overloaded"
    assert error_code_of(b"<html>", 502) == "http_502"
    assert error_code_of(b"{}", 500) == "http_500"


def test_events_survive_any_cut_and_unescaped_separators() -> None:
    stream = 'data: {"a":"\u2028"}\r\n\r\n: comment\n\ndata: x\ndata: y\n\ndata: [DONE]\n\n'.encode()
    expected = ['{"a":"\u2028"}'.encode(), b"x\ny", b"[DONE]"]
    for step in (1, 2, 7, len(stream)):
        reader = EventReader()
        pieces = [stream[start : start + step] for start in range(0, len(stream), step)]
        assert [event for piece in pieces for event in reader.feed(piece)] == expected


def test_endless_event_is_refused() -> None:
    reader = EventReader()
    for _ in range(4):
        reader.feed(b"data: " + b"x" * 1_000_000 + b"\n")
    with pytest.raises(ValueError, match="size limit"):
        reader.feed(b"data: " + b"x" * 1_000_000)
