"""One process for a pipeline, or for each half of one: it runs source, transforms, buffer and sink."""
