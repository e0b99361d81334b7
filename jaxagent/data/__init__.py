"""Data that a user brings, read into small records."""
