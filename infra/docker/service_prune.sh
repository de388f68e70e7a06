#!/bin/sh
# Takes out of a folder of packages what the scoring service never reads: `sh service_prune.sh SITE_PACKAGES`.
# A test serves requests from what is left (tests/infra/test_images.py).
set -eu
cd "$1"
# Tests and headers: a tenth of all.
find . -type d \( -name tests -o -name include \) -prune -exec rm -rf {} +
# botocore describes all of AWS; S3 has the models, Secrets Manager the passwords, STS the role.
find botocore/data -mindepth 1 -maxdepth 1 -type d ! -name s3 ! -name secretsmanager ! -name sts -exec rm -rf {} +
# ONNX Runtime once more, for programs in C: its module for Python has the runtime in it.
rm -rf onnxruntime/capi/libonnxruntime.so.*
# What makes models, builds extensions and tests dialects.
rm -rf onnxruntime/quantization onnxruntime/tools onnxruntime/transformers numpy/distutils numpy/f2py sqlalchemy/testing
# Symbols, which only a debugger reads. Not of the libraries that wheels carry beside their modules: auditwheel has moved
# their sections, and strip may break them.
find . -name '*.so' ! -path '*.libs/*' -exec strip --strip-unneeded {} +
