"""Optimise a model for preferences: `stack.training.job`, as jobs.supervised_fine_tune."""

import sys

from jobs.supervised_fine_tune import train
from stack.jobs.runner import main

if __name__ == "__main__":
    sys.exit(main(train, "jobs.preference_optimize"))
