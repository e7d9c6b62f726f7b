"""Packaged training settings, a file each."""
