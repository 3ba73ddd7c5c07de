"""Hyperparameter search whose trials are runs of the fleet."""
