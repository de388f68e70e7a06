"""Answers requests. Must not import `training`."""
