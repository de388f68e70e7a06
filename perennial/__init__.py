"""Command line, settings, and the local stack."""
