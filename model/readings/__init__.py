"""What a task found in one clip, as rows, JSON and drawings: one module a kind of finding."""
