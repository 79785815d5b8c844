"""One call of the head: options, targets, weights and validation, the kernels, and the threads that run them."""
