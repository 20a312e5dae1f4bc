#!/bin/bash
# DIR ORIGIN-PORT: a cache, and the server that it asks.
cd "$1" || exit 1
python3 -m http.server "$2" --bind 127.0.0.1 -d html &
exec squid -N -f squid.conf
