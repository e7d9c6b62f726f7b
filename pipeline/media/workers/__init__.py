"""Decoding processes that can be killed: what runs in them, and the pool that feeds them."""
