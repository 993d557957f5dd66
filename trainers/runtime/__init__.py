"""Infrastructure of every run: arguments, optimizers, distributed processes, checkpoints, the run folder."""
