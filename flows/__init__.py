"""Prefect only: the one package that imports prefect."""
