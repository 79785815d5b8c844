"""Approximate inverses of the Hessian for conjugate gradients."""
