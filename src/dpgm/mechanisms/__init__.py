"""The only code that computes on private rows: queries with their sensitivity, and noise."""
