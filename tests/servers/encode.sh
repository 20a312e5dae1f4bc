#!/bin/bash
# DIR ENCODER: encodes until the file `go` is there, then the same frames once more without
# a pause; 0 if both come out alike.
set -o pipefail
cd "$1" || exit 1
here=$(dirname "$0")
encode() {
    perl "$here/frames.pl" "$1" | "$2" -hide_banner -loglevel error -y -f rawvideo -pix_fmt yuv420p -s 160x120 -r 25 \
        -i - -c:v libx264 -preset slow -threads 3 -bitexact -f matroska "$3"
}
encode go "$2" encoded || exit 2
encode "$(cat frames)" "$2" undisturbed || exit 3
cmp encoded undisturbed && [ -s encoded ]
