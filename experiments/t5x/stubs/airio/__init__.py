"""A stub of airio."""
