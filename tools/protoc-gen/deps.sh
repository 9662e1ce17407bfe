#!/bin/sh
# Lays the .proto files that ours import, from pinned modules, into proto/third_party.
set -eu
cd "$(dirname "$0")"
out=../../proto/third_party
dir() { GOWORK=off go mod download -json "$1" | sed -n 's/^.*"Dir": "\(.*\)".*$/\1/p'; }
validate=$(dir github.com/bufbuild/protovalidate@v1.2.2)
google=$(dir github.com/grpc-ecosystem/grpc-gateway@v1.16.0)
rm -rf "$out"
mkdir -p "$out/buf/validate" "$out/google/api"
install -m 0644 "$validate/proto/protovalidate/buf/validate/validate.proto" "$out/buf/validate/"
install -m 0644 "$google/third_party/googleapis/google/api/annotations.proto" \
  "$google/third_party/googleapis/google/api/http.proto" "$out/google/api/"
