"""Variational inference: guides and particles fitted by optimisation, and learned parts that plug into properly weighted algorithms."""
