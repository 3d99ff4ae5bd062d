"""The metadata database: one schema and one set of transaction functions for every SQL database."""
