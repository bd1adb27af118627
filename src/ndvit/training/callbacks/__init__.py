"""What runs beside the training steps: one concern a file."""
