"""The agent: it reconciles what is desired with what runs, and supervises the workers."""
