"""Whether everything that perennial needs is there: a check for each address, permission and version."""
