"""The tasks: one module each, registered in `model/task.py`. `labels.py` is what several of them share."""
