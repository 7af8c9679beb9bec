"""Backgrounds by diffusion: Stable Diffusion with a canny ControlNet, painting around a product that stays as it is."""
