"""What a person reads of a run: arrays in, figures and tables out."""
