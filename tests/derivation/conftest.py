"""Fixtures of the derivation's tests: a browser for the page."""

from browser import artefacts, chromium, opened  # noqa: F401
