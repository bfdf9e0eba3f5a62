#!/bin/sh
# mergekit 0.1.4 in an environment of its own: sh benchmarks/peers/setup_mergekit.sh PEER
set -e
python3 -m venv "$1"
"$1/bin/pip" install -q torch
# Its pins of click, accelerate and safetensors are older than what works with today's torch and transformers.
"$1/bin/pip" install -q --no-deps mergekit==0.1.4
"$1/bin/pip" install -q tqdm click safetensors accelerate "pydantic~=2.10.6" immutables "transformers>=4.45.2,<5" tokenizers \
  huggingface_hub peft typing-extensions sentencepiece protobuf scipy datasets
"$1/bin/mergekit-yaml" --help > /dev/null
