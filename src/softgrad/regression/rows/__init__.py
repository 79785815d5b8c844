"""Rows of features, and the sums over them that a solver needs."""
