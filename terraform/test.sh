#!/usr/bin/env bash
# fmt, init, validate and test of every module and environment, without network
# and without writing into the source: test.sh MARQUEE [terraform|tofu|PATH]...
# MARQUEE is the command that finds terraform; without a program it takes the one
# that it finds first.
set -euo pipefail
source=$(cd "$(dirname "$0")" && pwd)
marquee=$(realpath "$1")
shift
cd "$source/.."

# One folder: what it says is kept in a file, and shown when it fails.
one() {
  local dir=$1 start=$SECONDS
  cd "$dir"
  if { "$PROGRAM" init -backend=false -input=false && "$PROGRAM" validate && "$PROGRAM" test; } >"$dir/test.log" 2>&1; then
    printf '  ok    %-22s %3d s  %s\n' "${dir#"$COPY"/}" "$((SECONDS - start))" "$(grep -E '[0-9]+ passed' "$dir/test.log")"
  else
    printf '  FAIL  %s\n' "${dir#"$COPY"/}"
    grep -v '\.\.\. pass$' "$dir/test.log"
    return 1
  fi
}
export -f one

for which in "${@:-}"; do
  PROGRAM=$(MARQUEE_TERRAFORM=${which:-${MARQUEE_TERRAFORM:-}} "$marquee" tools terraform)
  COPY=$PWD/.marquee/terraform-test/$(basename "$PROGRAM")
  export PROGRAM COPY TF_CLI_CONFIG_FILE=$PWD/.marquee/tools/terraform.tfrc TF_IN_AUTOMATION=1 CHECKPOINT_DISABLE=1 NO_COLOR=1 TF_CLI_ARGS=-no-color
  echo "$("$PROGRAM" version | grep -m1 -E 'v[0-9]') ($PROGRAM)"
  "$PROGRAM" fmt -check -diff -recursive "$source" || { echo 'terraform/ is not formatted: marquee terraform fmt -recursive terraform' >&2; exit 1; }
  rm -rf "$COPY"
  mkdir -p "$COPY"
  cp -R "$source/modules" "$source/environments" "$COPY/"
  find "$COPY" \( -name .terraform -o -name '.terraform.lock.hcl' -o -name '*.tfstate*' \) -prune -exec rm -rf {} +
  # A folder that has a versions.tf is one to test.
  find "$COPY" -name versions.tf -printf '%h\n' | sort | xargs -P "$(nproc)" -I{} bash -c 'one {}'
  rm -rf "$COPY"
done
