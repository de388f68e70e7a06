"""Kafka -> event lake -> Feast."""
