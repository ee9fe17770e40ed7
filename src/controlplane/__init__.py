"""The vendor's or platform team's side: what flows where, on which nodes, in which version. It never sees a record.

A change enters through `api`, becomes an event through `commands` and `domain`, and leaves through projections:
`readmodels` for people, `channel` for nodes, `audit` for auditors. It imports `contracts` and nothing of the other plane.
"""
