#!/bin/sh
# Runs every fuzz target, one after the other: run.sh [SECONDS [TARGET...]]
# Seeds come from real appshots that are made first, so it needs root. cargo-fuzz
# is installed where it is missing; it wants a nightly compiler, and a stable one
# does with RUSTC_BOOTSTRAP=1.
set -eu
cd "$(dirname "$0")/.."

seconds=${1:-600}
[ $# = 0 ] || shift
targets=${*:-manifest core notes packed vdso texts requests terminal ledger}

cargo fuzz --version >/dev/null 2>&1 || cargo install --locked cargo-fuzz
cargo run -q -p appshot-tests --example seeds -- fuzz/corpus
export RUSTC_BOOTSTRAP=1
for target in $targets; do
    echo "== $target"
    dictionary=
    case $target in manifest | requests | ledger) dictionary=-dict=fuzz/json.dict ;; esac
    nice -n 19 cargo fuzz run "$target" -- -max_len=65536 -rss_limit_mb=4096 -timeout=20 \
        -max_total_time="$seconds" -print_final_stats=1 $dictionary
done
