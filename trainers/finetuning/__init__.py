"""Fine-tuning, calibration, evaluation and scoring of pre-trained checkpoints."""
