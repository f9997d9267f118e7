#!/bin/bash
# Compiles llama.cpp's server for this processor: its source is the one that llama-cpp-python ships.
set -euo pipefail
cd "$(dirname "$0")/../../.peers"
readonly PACKAGE=llama_cpp_python-0.3.36
mkdir -p llama.cpp/source llama.cpp/bin
bin/python -m pip download --quiet --disable-pip-version-check --no-deps --no-binary :all: \
  --dest llama.cpp/source llama-cpp-python==0.3.36
tar -xzf "llama.cpp/source/$PACKAGE.tar.gz" -C llama.cpp/source
cmake -G Ninja -S "llama.cpp/source/$PACKAGE/vendor/llama.cpp" -B llama.cpp/build -Wno-dev \
  -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DBUILD_SHARED_LIBS=OFF -DLLAMA_BUILD_COMMON=ON \
  -DLLAMA_BUILD_TOOLS=ON -DLLAMA_BUILD_SERVER=ON -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF \
  -DLLAMA_BUILD_APP=OFF -DLLAMA_BUILD_UI=OFF -DLLAMA_OPENSSL=OFF
cmake --build llama.cpp/build --target llama-server
cp llama.cpp/build/bin/llama-server llama.cpp/bin/
