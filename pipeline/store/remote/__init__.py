"""Stores in object stores: put there, brought from there, read from there."""
