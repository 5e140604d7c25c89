"""How flux-shapes and clip-shapes are made: one module a stage, run in order by `recipe`."""
