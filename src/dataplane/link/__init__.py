"""The way to the control plane: leaf connection, document store, sync, and the gate that all reports pass."""
