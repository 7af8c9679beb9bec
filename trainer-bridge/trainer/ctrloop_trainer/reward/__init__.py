"""Reward models: the frozen eye, the siamese scorer, their training and baselines."""
