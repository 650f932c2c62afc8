"""Optimise a model for preferences: `stack.training.job`, as jobs.supervised_fine_tune."""

import sys

from jobs.supervised_fine_tune import main

if __name__ == "__main__":
    sys.exit(main())
