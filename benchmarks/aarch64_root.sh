#!/bin/sh
# Makes a folder with an aarch64 Python, numpy and ONNX Runtime that qemu-aarch64 can run, on a
# Debian machine of another architecture: packages are unpacked, nothing is installed.
#
#   benchmarks/aarch64_root.sh FOLDER [PIP]
set -eu
folder=$(mkdir -p "$1" && cd "$1" && pwd)
pip=${2:-pip}
apt="-o APT::Architecture=arm64 -o APT::Architectures=arm64 -o Dir::State::status=/dev/null
  -o Dir::State::Lists=$folder/lists -o Dir::Cache=$folder/cache"
mkdir -p "$folder/lists/partial" "$folder/cache/archives/partial" "$folder/debs" \
  "$folder/wheels" "$folder/sysroot/site" "$folder/sysroot/proc"
apt-get $apt -qq update
cd "$folder/debs"
apt-get $apt -qq download python3.11-minimal libpython3.11-minimal libpython3.11-stdlib libc6 \
  libstdc++6 libgcc-s1 libgomp1 zlib1g libexpat1 libssl3 libffi8 liblzma5 libbz2-1.0
for package in *.deb; do dpkg -x "$package" "$folder/sysroot"; done
$pip download -q --no-deps --only-binary=:all: --python-version 3.11 -d "$folder/wheels" \
  --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 onnxruntime==1.31.1 numpy
for wheel in "$folder"/wheels/*.whl; do
  python3 -m zipfile -e "$wheel" "$folder/sysroot/site"
done
echo "use it with --onnxruntime-root $folder/sysroot"
