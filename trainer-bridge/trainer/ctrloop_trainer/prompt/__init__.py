"""The prompt model: its folder format, sampling and pre-training."""
