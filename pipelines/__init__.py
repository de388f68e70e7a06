"""One folder per model kept fresh; `spec.py` is their typed contract."""
