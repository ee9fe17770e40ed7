"""Compares what a pipeline has delivered with its source, by key and value, and mends what differs.

A process of its own beside the pipeline's workers (`__main__`), started by the node's agent while a document asks for
it. `runtime` goes from table to table, `comparison` through one table, `proof` decides what two readings of a row mean,
`source_end` and `destination_end` ask the two databases, and `register` keeps what was found, at the destination.
"""
