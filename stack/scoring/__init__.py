"""Scoring: functions that say how good an answer is, and what their scores amount to."""
