"""Fixtures of the command line's tests: commands in this process, and a browser for the report."""

from browser import artefacts, chromium, opened  # noqa: F401
from cli_cases import cli  # noqa: F401
