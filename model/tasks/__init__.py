"""The tasks: one module each, registered in `model/tasks/base.py`. `labels.py` is what several of them share."""
