"""The only language that the two planes share.

Down flow whole desired-state documents (`v1`, `v2`), wrapped in a signature (`envelope`), on the subjects of
`subjects`. Up flow reports of a closed set of types that cannot hold a record. `convert` moves a document between
the two contract versions and returns either the value or the list of what would be lost.

Nothing here does I/O, and nothing here imports either plane. Both planes, the CLI and offline verifiers import it.
"""

CONTRACT_LATEST = 2
CONTRACTS_SPOKEN = (1, 2)
