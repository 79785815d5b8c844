"""The checker of anybody's softmax cross-entropy: `softgrad.check_gradient`."""
