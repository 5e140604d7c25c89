"""Ways of editing a picture, a file each: what is changed while the model denoises, by which formula.

push        features moved by fixed amounts (what `shift` and `learned` find is replayed by it)
transport   features take the codes that they have in a donor's run
shift       amounts from prompts alone: the mean codes of those with the wished value less the others'
learned     amounts of a few features, fitted to what the model told of the wish would do
detector    features, or a region, say where; the model told of the wish says how
"""
