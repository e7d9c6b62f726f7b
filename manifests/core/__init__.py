"""What all four packages stand on: errors, the registry of components, the home folder, the one atomic write."""
