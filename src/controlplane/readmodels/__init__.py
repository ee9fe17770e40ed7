"""Tables that the API reads, derived from the log by one projection, and the queries on them."""
