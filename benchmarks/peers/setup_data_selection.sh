#!/bin/sh
# Makes a virtual environment with zip-fit 1.0.9 and data-selection (DSIR) 1.0.3: sh setup_data_selection.sh FOLDER
set -eu
folder=${1:?folder for the environment}
python3 -m venv "$folder"
"$folder/bin/python" -m pip install --quiet numpy datasets lz4 zstandard brotli nltk tqdm joblib
"$folder/bin/python" -m pip install --quiet --no-deps zip-fit==1.0.9 data-selection==1.0.3
