"""Embedded models: pipelines small enough to ship, so that everything can be tried with no download."""
