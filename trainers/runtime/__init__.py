"""What every run needs: arguments, optimizers, processes, checkpoints, the folder of a run."""
