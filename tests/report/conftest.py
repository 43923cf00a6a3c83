"""Fixtures of these tests (tests/callbacks/tiny.py)."""

from __future__ import annotations

from tests.callbacks.tiny import fit, tiny, tiny_data  # noqa: F401
