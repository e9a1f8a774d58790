"""Digits in pictures: read a file, prepare each digit as MNIST was, recognize it."""
