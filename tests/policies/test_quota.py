"""What headers say of limits is read as OpenAI and Azure write it; garbage is counted and breaks nothing."""

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app.policies.quota import Quota, QuotaReader


def headers(limit: str | None = None, remaining: str | None = None, reset: str | None = None) -> dict[str, str]:
    said = {"limit": limit, "remaining": remaining, "reset": reset}
    return {f"x-ratelimit-{name}-requests": text for name, text in said.items() if text is not None}


def read(limit: str | None = None, remaining: str | None = None, reset: str | None = None) -> Quota | None:
    return QuotaReader().read(headers(limit, remaining, reset), "requests")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("12ms", 0.012),
        ("1s", 1.0),
        ("6m0s", 360.0),
        ("1h2m3.5s", 3723.5),
        ("8.64s", 8.64),
        ("1d", 86_400.0),
        ("23h59m59s", 86_399.0),
        ("250us", 0.00025),
        ("250µs", 0.00025),
        ("5ns", 5e-9),
        ("1m30.5s", 90.5),
        ("1s12ms", 1.012),
        (" 20s ", 20.0),
    ],
)
def test_openais_durations_are_read_as_seconds(text: str, seconds: float) -> None:
    found = read(limit="60", remaining="1", reset=text)
    assert found is not None
    assert found.reset == pytest.approx(seconds)


@pytest.mark.parametrize(("text", "seconds"), [("60", 60.0), ("1", 1.0), ("17.5", 17.5)])
def test_azures_whole_numbers_are_seconds(text: str, seconds: float) -> None:
    assert read(limit="60", remaining="1", reset=text) == Quota(60.0, 1.0, seconds)


def test_each_unit_is_read_from_its_own_headers() -> None:
    said = headers("60", "59", "1s") | {
        "x-ratelimit-limit-tokens": "150000",
        "x-ratelimit-remaining-tokens": "149984",
        "x-ratelimit-reset-tokens": "6m0s",
    }
    assert QuotaReader().read(said, "requests") == Quota(60.0, 59.0, 1.0)
    assert QuotaReader().read(said, "tokens") == Quota(150_000.0, 149_984.0, 360.0)


def test_without_the_headers_nothing_is_said() -> None:
    reader = QuotaReader()
    assert reader.read({"content-type": "application/json"}, "requests") is None
    assert reader.read(headers("60", "59", "1s"), "tokens") is None
    assert reader.garbage == 0


@pytest.mark.parametrize("text", ["0", "-1", "-1.5", "0.0", "-0"])
def test_values_of_nothing_or_less_count_as_unsaid_and_are_no_garbage(text: str) -> None:
    reader = QuotaReader()
    assert reader.read(headers(text, text, text), "requests") is None
    assert reader.garbage == 0


def test_nothing_left_is_believed_when_it_is_said_when_there_will_be_more() -> None:
    assert read(limit="60", remaining="0", reset="1s") == Quota(60.0, 0.0, 1.0)


@pytest.mark.parametrize("reset", [None, "0", "0s", "-1", "soon"])
def test_nothing_left_and_nothing_to_come_means_that_it_does_not_know(reset: str | None) -> None:
    assert read(limit="60", remaining="0", reset=reset) == Quota(60.0, None, None)


@pytest.mark.parametrize(
    "text",
    ["", " ", "soon", "nan", "inf", "-inf", "1e999", "1e5", "1,000", "5 seconds", "6m 0s", "s", "-5s", "0x10",
     "1m;2s", "\u00b2", "9" * 16, "9" * 5000, "1s" * 5000 + "x"],
)  # fmt: skip
def test_garbage_is_ignored_and_counted(text: str) -> None:
    reader = QuotaReader()
    assert reader.read(headers(text, text, text), "requests") is None
    assert reader.garbage == 3


@pytest.mark.parametrize("text", ["2d3h", "86401", "24h0m0.1s", "1795177690", "1795177690123"])
def test_a_reset_more_than_a_day_ahead_is_a_date_or_garbage_and_the_rest_is_believed(text: str) -> None:
    reader = QuotaReader()
    assert reader.read(headers("60", "1", text), "requests") == Quota(60.0, 1.0, None)
    assert reader.garbage == 1
    assert reader.read(headers(None, None, text), "requests") is None


def test_garbage_in_one_header_leaves_the_others_their_say() -> None:
    reader = QuotaReader()
    assert reader.read(headers("many", "59", "1s"), "requests") == Quota(None, 59.0, 1.0)
    assert reader.read(headers("60", "many", "1s"), "requests") == Quota(60.0, None, 1.0)
    assert reader.read(headers("60", "59", "soon"), "requests") == Quota(60.0, 59.0, None)
    assert reader.garbage == 3


_LIKE_DURATIONS = st.text("0123456789.dhmsnuµ-+ ", max_size=40)
_VALUE = st.none() | st.text(max_size=40) | _LIKE_DURATIONS | st.integers().map(str) | st.floats().map(str)


@given(_VALUE, _VALUE, _VALUE)
@example("\u0661\u0662s", "\u0663", "1s")
@example("999999999999d" * 50, "1", "999999999999d" * 50)
def test_no_header_an_upstream_may_send_breaks_the_reading(
    limit: str | None, remaining: str | None, reset: str | None
) -> None:
    reader = QuotaReader()
    found = reader.read(headers(limit, remaining, reset), "requests")
    assert 0 <= reader.garbage <= 3
    if found is not None:
        assert found.limit is None or 0 < found.limit < math.inf
        assert found.remaining is None or 0 <= found.remaining < math.inf
        assert found.reset is None or 0 < found.reset < math.inf


@given(st.integers(0, 23), st.integers(0, 59), st.integers(0, 59), st.integers(0, 999))
def test_every_duration_that_go_writes_is_read_back(hours: int, minutes: int, seconds: int, millis: int) -> None:
    text = f"{hours}h{minutes}m{seconds}.{millis:03d}s"
    total = hours * 3600 + minutes * 60 + seconds + millis / 1000
    found = read(remaining="1", reset=text)
    assert found is not None
    assert (found.reset or 0.0) == pytest.approx(total)
