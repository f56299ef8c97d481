"""Prediction: from an image and its marks to masks in the original frame."""
