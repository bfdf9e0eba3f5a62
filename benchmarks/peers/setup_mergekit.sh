#!/bin/sh
# mergekit 0.1.4 in an environment of its own: sh benchmarks/peers/setup_mergekit.sh PEER
set -e
python3 -m venv "$1"
"$1/bin/pip" install -q torch
# Its pins of click, pydantic, accelerate and safetensors are older than what works with today's torch and transformers.
"$1/bin/pip" install -q --no-deps mergekit==0.1.4
"$1/bin/pip" install -q tqdm click safetensors accelerate pydantic immutables "transformers>=5,<6" tokenizers \
  huggingface_hub peft typing-extensions sentencepiece protobuf scipy datasets
"$1/bin/mergekit-yaml" --help > /dev/null
