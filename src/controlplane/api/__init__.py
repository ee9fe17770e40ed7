"""The HTTP API, one noun a file. Controllers translate: a request into a command or a query, an outcome into an answer."""
