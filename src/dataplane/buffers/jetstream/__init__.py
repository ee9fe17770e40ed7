"""A buffer in JetStream: a stream of the leaf's DATA account for each pipeline. `writer` and `reader` are its two ends."""
