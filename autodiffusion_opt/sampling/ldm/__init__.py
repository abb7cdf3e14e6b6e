"""Unconditional latent diffusion models (LDM, https://arxiv.org/abs/2112.10752), from CompVis' checkpoints.

:mod:`.presets` says how the published models are built, :mod:`.weights` renames those of the first stage, which decodes
latents to images, :mod:`.convert` writes a folder that diffusers' ``LDMPipeline`` opens.
"""
