"""Is this data fit, and has it moved."""
