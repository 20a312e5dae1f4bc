#!/bin/sh
# Installs what the tests need on Debian 12. Quick when all is there; starts no service.
set -eu

packages="build-essential binutils gdb strace iproute2 nftables python3 python3-venv nodejs golang-go openjdk-17-jdk-headless
redis-server redis-tools nginx-light postgresql-15 curl openssl python3-grpcio python3-websockets
memcached beanstalkd haproxy mariadb-server-core mariadb-client-core bind9 bind9-dnsutils squid php8.2-fpm erlang-base
puma perl python3-gunicorn python3-uvicorn python3-ipykernel python3-numpy sqlite3 vim-tiny htop tmux stress-ng
bubblewrap"

# An encoder without the ninety packages of Debian's.
encoder() {
    [ -e /opt/appshot-tests/encoder ] && return
    /opt/appshot-tests/bin/pip install -q --no-deps imageio-ffmpeg==0.6.0
    ln -s "$(/opt/appshot-tests/bin/python -c 'import imageio_ffmpeg as f; print(f.get_ffmpeg_exe())')" /opt/appshot-tests/encoder
}

# What reads as others do: a structural check of FOCUS columns, tables in Parquet, traces.
readers() {
    [ -e /opt/appshot-tests/traces ] && return
    [ "$(id -u)" = 0 ] || { echo "setup.sh: needs root to make /opt/appshot-tests" >&2; exit 1; }
    python3 -m venv /opt/appshot-tests
    /opt/appshot-tests/bin/pip install -q focus-data-toolkit==0.14.1 duckdb==2.0.1 pyarrow==26.0.1 \
        opentelemetry-proto==1.45.2
    touch /opt/appshot-tests/tables /opt/appshot-tests/traces
}

missing=""
for package in $packages; do
    dpkg-query -W -f='${db:Status-Status}\n' "$package" 2>/dev/null | grep -qx installed ||
        missing="$missing $package"
done
[ -n "$missing" ] || { readers; encoder; exit 0; }
[ "$(id -u)" = 0 ] || { echo "setup.sh: needs root to install:$missing" >&2; exit 1; }

# While this file says no, packages do not start their services.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    trap 'exit 1' INT TERM
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
fi
# No cluster of its own either: the tests make theirs in a temporary directory.
if [ ! -e /etc/postgresql-common/createcluster.conf ]; then
    mkdir -p /etc/postgresql-common
    echo "create_main_cluster = false" >/etc/postgresql-common/createcluster.conf
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -q
# shellcheck disable=SC2086
apt-get install -o DPkg::Lock::Timeout=600 -qy --no-install-recommends $missing
readers
encoder
