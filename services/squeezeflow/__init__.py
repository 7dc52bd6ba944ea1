"""Squeezeflow makes TensorFlow models small, with proof, as a service."""
