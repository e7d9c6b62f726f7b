"""Captioners `tags`: sentences from what two small classifiers recognise, EfficientNet-Lite0 and YAMNet."""
