"""What is done with a pre-trained checkpoint: fine-tuning, calibration, evaluation, scoring."""
