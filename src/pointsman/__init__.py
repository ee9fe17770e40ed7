"""What people touch: the command line, the client, and the composition root that runs both planes on one machine."""
