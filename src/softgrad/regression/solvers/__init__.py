"""Newton's method in its variants, L-BFGS, and the state of a fit."""
