"""The recorder itself: the same twice, and a difference is seen."""

from __future__ import annotations

from tests import recorder


def test_two_records_are_equal_and_a_change_is_seen() -> None:
    make = recorder.FAMILIES["md4"]
    first, second = ({"md4, plain": recorder.record_one(make, fused=False)} for _ in range(2))
    assert list(recorder.differences(first, second)) == []

    def other() -> recorder.Family:
        model = make()
        model.seed = 1  # of the noise: the smallest change that a step can see
        return model

    changed = {"md4, plain": recorder.record_one(other, fused=False)}
    found = list(recorder.differences(first, changed))
    assert [line.split()[2] for line in found] == ["losses", "bound", "sample"]
    assert list(recorder.differences(first, {})) == ["md4, plain: only before"]
