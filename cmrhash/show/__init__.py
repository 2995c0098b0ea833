"""Runs for the eye, on paper: plots, and a report in one file."""
