"""Faster twins of plain formulas; each module says what it equals and what it brings."""
