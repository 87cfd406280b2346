"""Stores of files: one small protocol, and a store for each kind of destination."""
