"""Lower bounds of the least objective, and the proof that classes are separable."""
