"""A run folder made into a static page that opens by a double click."""
