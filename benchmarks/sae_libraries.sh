#!/bin/sh
# Make an environment with the other SAE libraries, for sae_conformance.py and sae_training.py:
#   sh benchmarks/sae_libraries.sh [folder, by default .sae-libraries]
# torchvision is removed again: its build need not match torch's, and none of the SAEs needs it.
set -e
folder=${1:-.sae-libraries}
python3 -m venv "$folder"
"$folder/bin/pip" install --quiet torch==2.13.0 dictionary-learning==0.1.0 eai-sparsify==1.3.3 sae-lens==6.54.12
"$folder/bin/pip" install --quiet einops scikit-learn
"$folder/bin/pip" install --quiet --no-deps overcomplete==0.3.0
"$folder/bin/pip" uninstall --quiet --yes torchvision
"$folder/bin/python" -c "import dictionary_learning, sparsify, sae_lens; print('ready')"
