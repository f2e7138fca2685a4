"""The command lines of viewers from 0.12 to 0.41."""

import argparse

import pytest

from rerun_loader_sam.command import _parser
from rerun_loader_sam.protocol import Request, Time, request_from


def parse(*arguments: str) -> Request:
    return request_from(_parser().parse_known_args(["photo.jpg", *arguments])[0])


def test_since_0_12() -> None:
    request = parse("--recording-id", "abc")
    assert (request.recording_id, request.application_id, request.is_into_opened) == ("abc", None, False)


def test_since_0_15() -> None:
    day = 1_700_000_000 * 10**9
    request = parse(
        *("--application-id", "app", "--recording-id", "r", "--entity-path-prefix", "robot/cam", "--timeless"),
        *("--time", f"stamp={day}", "--time", "since=5", "--sequence", "frame=7"),
    )
    assert (request.application_id, request.entity_path_prefix, request.is_static) == ("app", "robot/cam", True)
    assert set(request.times) == {
        Time("stamp", "timestamp", day),
        Time("since", "duration", 5),
        Time("frame", "sequence", 7),
    }


def test_since_0_16_static_comes_in_both_spellings() -> None:
    assert parse("--recording-id", "r", "--timeless", "--static").is_static


def test_since_0_20_the_opened_recording() -> None:
    request = parse("--recording-id", "r", "--opened-application-id", "a", "--opened-recording-id", "o")
    assert request.is_into_opened
    assert (request.opened_application_id, request.opened_recording_id) == ("a", "o")


def test_since_0_23_each_time_comes_in_a_new_and_an_old_spelling() -> None:
    request = parse(
        *("--time_sequence", "frame=3", "--sequence", "frame=3"),
        *("--time_duration_nanos", "run=-9", "--time", "run=-9"),
        *("--time_duration_nanos", "stamp=1700000000000000000", "--sequence", "stamp=1700000000000000000"),
    )
    assert set(request.times) == {
        Time("frame", "sequence", 3),
        Time("run", "duration", -9),
        Time("stamp", "timestamp", 1700000000000000000),
    }


def test_the_documented_timestamp_flag_is_taken_too() -> None:
    assert parse("--time_timestamp_nanos", "t=12").times == (Time("t", "timestamp", 12),)


def test_flags_of_the_future_are_passed_over() -> None:
    request = parse("--transform-frame-prefix", "tf", "--recording-id", "r", "--anything=x", "--flag")
    assert request == Request(request.path, recording_id="r")


def test_a_timeline_may_have_an_equals_sign() -> None:
    assert parse("--time_sequence", "a=b=4").times == (Time("a=b", "sequence", 4),)


@pytest.mark.parametrize("text", ["frame", "frame=", "=3", "frame=1.5", "frame=x"])
def test_a_time_that_is_none_is_named(text: str) -> None:
    with pytest.raises(ValueError, match="TIMELINE=INTEGER"):
        parse("--time_sequence", text)


def test_flags_are_not_abbreviated() -> None:
    namespace, unknown = _parser().parse_known_args(["x", "--record", "r"])
    assert isinstance(namespace, argparse.Namespace)
    assert unknown
    assert namespace.recording_id is None
