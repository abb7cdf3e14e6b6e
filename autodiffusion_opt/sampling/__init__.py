"""Sampling: put a candidate on a diffusers pipeline and generate images. The only rooms that know diffusers."""
