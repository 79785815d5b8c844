"""The parts of :mod:`softgrad.sklearn`."""
