#!/usr/bin/env bash
# Everything a hospital without a package index needs, as wheels in one folder: deploy/bundle.sh [PYTHON] [FOLDER]
#
# Run it on a machine with a network, of the same kind (Linux, processor) and with the same Python minor version as
# the hospital's: wheels are made for one of each. Needs about 4 GB of disk. The hospital then runs install.sh.
set -eu
cd "$(dirname "$0")/.."
python=${1:-.venv/bin/python}
folder=${2:-dist/bundle}

rm -rf "$folder"
mkdir -p "$folder"
"$python" -m pip wheel --disable-pip-version-check --quiet --wheel-dir "$folder" '.[dicom]'
cp LICENSE "$folder/"
cat > "$folder/install.sh" <<'EOF'
#!/usr/bin/env bash
# Installs from this folder alone, into a new virtual environment: install.sh [VENV] [PYTHON]
set -eu
cd "$(dirname "$0")"
sha256sum --quiet --check SHA256SUMS
venv=${1:-/opt/aecnn}
"${2:-python3}" -m venv "$venv"
"$venv/bin/python" -m pip install --disable-pip-version-check --quiet --no-index --find-links . 'aecnn-federated[dicom]'
"$venv/bin/aecnn-client" --help > /dev/null
echo "installed: $venv/bin/aecnn-client"
EOF
chmod +x "$folder/install.sh"
(cd "$folder" && sha256sum -- * > SHA256SUMS.new && mv SHA256SUMS.new SHA256SUMS)
du -sh "$folder"
