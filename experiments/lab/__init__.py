"""The laboratory: claims about batch size, learning rate and generalization, each measured.

    python -m experiments.lab NAME --workdir=runs/lab

Each experiment is a file here that defines `STUDY`, a `study.Study`. `study.py` runs all of them.
"""

# The order of docs/laboratory.md.
EXPERIMENTS = (
    "update_time",
    "fixed_rate",
    "constant_noise",
    "constant_noise_cifar10",
    "optimal_batch",
    "sharp_minima",
    "diffusion",
    "train_longer",
    "accumulation",
    "annealing",
    "cifar10_plans",
    "methods",
    "transfer",
    "series",
    "stale",
    "interactions",
    "ensembles",
)
