"""Copies of a study where people already look: TensorBoard, Optuna storage, MLflow, W&B."""
