"""YAMNet: MobileNet v1 on log-mel patches, trained on AudioSet (TensorFlow Model Garden, research/audioset/yamnet)."""
