"""Segmentation without SAM, to measure it against: classical methods and convolutional nets."""
