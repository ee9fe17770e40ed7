"""The doctor: everything that can be wrong with a connection, looked at on the node that would use it.

`reading` asks the server within a budget of time; `source` and `destination` turn what it says into findings;
`examination` puts them together. It runs in the process of `connection_check`.
"""
