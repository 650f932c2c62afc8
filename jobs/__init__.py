"""Entry points of jobs: `python -m jobs.<kind> --job-id ID`. The work itself is in `stack`."""
