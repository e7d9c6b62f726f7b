"""The tasks: a folder each with its config, task, head, loss, metric and prediction; `base.py` says what it must give.

The other modules are what several tasks share.
"""
