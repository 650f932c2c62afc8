"""Forward passes: weights, key-value cache, kernels."""
