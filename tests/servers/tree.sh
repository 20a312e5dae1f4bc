#!/bin/bash
# A tree of 100 processes; each says again and again that it lives.
cd "$1" || exit 1
live() { while :; do echo "$BASHPID" >"alive-$1"; read -r -t 0.2 <>"fifo"; done; }
mkfifo fifo
for group in {0..8}; do
    (
        for member in {1..10}; do live "$group-$member" & done
        live "$group-0"
    ) &
done
live root
