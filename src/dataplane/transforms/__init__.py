"""What happens to a batch between source and sink: one file for each transform, pure and without I/O."""
