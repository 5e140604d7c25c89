"""flux-shapes: a small real FLUX that ships with fluxscope, and the world whose pictures it draws."""
