"""Datasets: rows to train on and to evaluate with, in LanceDB tables, one for each registration."""
