"""Who serves what share of the traffic, and why."""
