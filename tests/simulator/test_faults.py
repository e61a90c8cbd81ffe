"""Faults: what is read of them, and whom they strike."""

import msgspec
import pytest

from app.errors import InvalidRequestError, MethodNotAllowedError
from app.simulator.faults import Fault, Faults

WELL = {"status": None, "code": None, "hole": False, "share": 1.0, "latency": 0.0}


def test_a_fault_holds_until_it_is_changed_or_healed() -> None:
    faults = Faults(1)
    assert msgspec.json.decode(faults.control("GET", b"")) == WELL
    assert msgspec.json.decode(faults.control("POST", b'{"status": 503, "latency": 2}')) == {
        **WELL,
        "status": 503,
        "latency": 2.0,
    }
    assert faults.strike() == Fault(status=503, latency=2)
    faults.control("POST", b'{"hole": true}')
    assert msgspec.json.decode(faults.control("GET", b"")) == {**WELL, "hole": True}
    assert faults.strike() == Fault(hole=True)
    assert msgspec.json.decode(faults.control("DELETE", b"")) == WELL
    assert faults.strike() == Fault()


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_a_share_of_the_calls_is_struck_the_same_ones_for_the_same_seed(share: float) -> None:
    one, other = Faults(7), Faults(7)
    for faults in (one, other):
        faults.control("POST", msgspec.json.encode({"status": 500, "share": share}))
    struck = [one.strike().status == 500 for _ in range(2000)]
    assert struck == [other.strike().status == 500 for _ in range(2000)]
    assert sum(struck) / 2000 == pytest.approx(share, abs=0.05)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b'{"statis": 503}', "statis"),
        (b'{"status": "503"}', "status"),
        (b'{"status": 200}', "status"),
        (b'{"status": 600}', "status"),
        (b'{"status": true}', "status"),
        (b'{"hole": 1}', "hole"),
        (b'{"hole": true, "status": 503}', "hole"),
        (b'{"hole": true, "latency": 1}', "hole"),
        (b'{"share": 1.5}', "share"),
        (b'{"latency": -1}', "latency"),
        (b'{"latency": 1e999}', "latency"),
        (b"[]", None),
        (b"", None),
    ],
)
def test_what_is_no_fault_is_refused_and_changes_nothing(body: bytes, param: str | None) -> None:
    faults = Faults(1)
    faults.control("POST", b'{"status": 503}')
    with pytest.raises(InvalidRequestError) as caught:
        faults.control("POST", body)
    assert caught.value.param == param
    assert faults.strike() == Fault(status=503)


def test_other_methods_are_not_known() -> None:
    with pytest.raises(MethodNotAllowedError):
        Faults(1).control("PUT", b"{}")
