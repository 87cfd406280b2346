"""Submits that are paid for once: one generation, or a batch of them, with a record of each."""
