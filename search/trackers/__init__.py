"""Trackers: copies of a study in TensorBoard, an Optuna storage, MLflow and W&B."""
