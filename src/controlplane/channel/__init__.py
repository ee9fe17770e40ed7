"""The control plane's end of the channel: accounts at the hub, documents going down, syncs answered, reports taken in."""
