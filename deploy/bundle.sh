#!/usr/bin/env bash
# Everything a hospital without a package index needs, as wheels in one folder: deploy/bundle.sh [PYTHON] [FOLDER]
#
# Run it on a machine with a network, of the same kind (Linux, processor) and with the same Python minor version as
# the hospital's: wheels are made for one of each. Needs about 4 GB of disk. The hospital then runs install.sh.
# An index of your own or PyTorch's smaller wheels for machines without a GPU: pip's PIP_INDEX_URL, PIP_EXTRA_INDEX_URL.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
python=${1:-$root/.venv/bin/python}
folder=$(realpath -m -- "${2:-$root/dist/bundle}")

if [ -e "$folder" ] && [ ! -e "$folder/SHA256SUMS" ] && ! rmdir -- "$folder" 2> /dev/null; then
    echo "error: $folder holds something that is no bundle: name a new or empty folder" >&2
    exit 2
fi
partial=$folder.partial
rm -rf -- "$partial"
mkdir -p -- "$partial"
"$python" -m pip wheel --disable-pip-version-check --quiet --wheel-dir "$partial" "$root[dicom]"
cp "$root/LICENSE" "$partial/"
cat > "$partial/install.sh" <<'EOF'
#!/usr/bin/env bash
# Installs from this folder alone, into a new virtual environment: install.sh [VENV] [PYTHON]
set -eu
here=$(cd "$(dirname "$0")" && pwd)
(cd "$here" && sha256sum --quiet --check SHA256SUMS)
venv=${1:-/opt/aecnn}
"${2:-python3}" -m venv "$venv"
# No setting of pip's on this machine, such as constraints, counts for it.
PIP_CONFIG_FILE=/dev/null "$venv/bin/python" -m pip --isolated install --disable-pip-version-check --quiet \
    --no-index --find-links "$here" 'aecnn-federated[dicom]'
"$venv/bin/aecnn-client" --help > /dev/null
echo "installed: $venv/bin/aecnn-client"
EOF
chmod +x "$partial/install.sh"
(cd "$partial" && sha256sum -- * > SHA256SUMS.new && mv SHA256SUMS.new SHA256SUMS)
rm -rf -- "$folder"
mv -- "$partial" "$folder"
du -sh "$folder"
