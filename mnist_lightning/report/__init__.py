"""Metrics, tables, figures and the HTML page of a run: arrays in, text, figures and files out."""
