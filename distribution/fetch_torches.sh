#!/usr/bin/env bash
# Puts the torches that the wheel is for into folders, without what they need to run: a build reads headers and links.
#   fetch_torches.sh PYTHON FOLDER      then FOLDER/2.13.0/torch and so on; TORCH_INDEX names another registry
set -euo pipefail
python="$1" folder="$2"
index="${TORCH_INDEX:-https://download.pytorch.org/whl/cpu}"
while read -r version; do
  "$python" -m pip install -q --no-deps --index-url "$index" --target "$folder/$version" "torch==$version"
done < "$(dirname "$0")/torches.txt"
