"""fluxscope: look inside FLUX image models with sparse autoencoders."""

__version__ = "0.1.0"
