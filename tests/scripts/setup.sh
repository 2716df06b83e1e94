#!/usr/bin/env bash
# Installs what the Makefile's targets need and is missing. Arguments: which groups.
#   build   a C and C++ compiler, make, libclang (RocksDB's bindings), the Rust toolchain of rust-toolchain.toml
#   python  a virtual environment in .cache/venv with tests/requirements.txt
#   test    strace, which shows that the sync comes before the answer
#   bench   python3, and to compare with: PostgreSQL, DuckDB (tests/requirements-bench.txt in .cache/venv-bench), and mcp-proxy
#           (compiled in some minutes, in .cache/mcp-proxy)
#   node    Node 22 and the MCP servers of tests/demo/package-lock.json, in .cache/node
#   examples  the packages of gateway-shim/examples/package-lock.json, in .cache/examples
#   conformance  the official conformance suite, SDKs and Inspector of tests/conformance/package-lock.json, in .cache/conformance
# System packages come through apt if root or sudo is there. Else the exact command is printed, and this ends with 1.
# What is already there is not touched; nothing is installed outside .cache but those packages and the Rust toolchain.
set -euo pipefail
cd "$(dirname "$0")/../.."

packages=()
need() { packages+=("$@"); }
has() { command -v "$1" >/dev/null 2>&1; }
say() { printf 'setup: %s\n' "$*"; }

# The C interface; `libclang-cpp.so`, which other packages bring along, is another library.
has_libclang() {
    ldconfig -p 2>/dev/null | grep -q 'libclang\(-[0-9.]*\)\?\.so' && return
    compgen -G '/usr/lib/llvm-*/lib/libclang.so*' >/dev/null ||
        compgen -G '/usr/lib/llvm-*/lib/libclang-[0-9]*.so*' >/dev/null || [ -n "${LIBCLANG_PATH:-}" ]
}

has_python_venv() {
    python3 -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1
}

groups=" $* "
case "$groups" in *" build "*)
    has cc && has c++ || need build-essential
    has make || need make
    has git || need git
    has_libclang || need libclang-dev
esac
case "$groups" in *" python "* | *" bench "*) has_python_venv || need python3 python3-venv ;; esac
case "$groups" in *" node "* | *" examples "* | *" conformance "*) has npm || need npm ;; esac
case "$groups" in *" test "*) has strace || need strace ;; esac
case "$groups" in *" bench "*)
    # Debian keeps each version's programs in a folder of its own, off the path.
    compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || need postgresql
esac

if [ "${#packages[@]}" -gt 0 ]; then
    install="apt-get install --yes --no-install-recommends ca-certificates ${packages[*]}"
    become=()
    if [ "$(id -u)" -ne 0 ]; then become=(sudo); fi
    # `sudo -n true` asks nobody for a password: a build must not wait for one.
    if has apt-get && { [ "$(id -u)" -eq 0 ] || { has sudo && sudo -n true 2>/dev/null; }; }; then
        say "installing: ${packages[*]}"
        "${become[@]}" env DEBIAN_FRONTEND=noninteractive apt-get update --quiet --quiet
        # shellcheck disable=SC2086 # the words of the command that is also printed
        "${become[@]}" env DEBIAN_FRONTEND=noninteractive $install >/dev/null
    else
        printf 'error: missing: %s\nhint: on Debian, as root:\n  apt-get update && %s\n' "${packages[*]}" "$install" >&2
        exit 1
    fi
fi

setup_rust() {
    if ! has cargo; then
        cat >&2 <<'HINT'
error: there is no cargo
hint: install rustup (on Debian 13: apt-get install rustup; elsewhere:
  curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y --default-toolchain none
); it then takes the toolchain from rust-toolchain.toml by itself
HINT
        exit 1
    fi
    local channel have
    channel=$(sed -n 's/^channel = "\(.*\)"$/\1/p' rust-toolchain.toml)
    # With rustup this downloads the toolchain that the file names, if it is not there yet.
    if has rustup && ! cargo --version >/dev/null 2>&1; then
        say "installing Rust $channel"
        rustup toolchain install "$channel" --profile minimal --component rustfmt --component clippy
    fi
    have=$(cargo --version | cut -d' ' -f2)
    if [ "$have" != "$channel" ]; then
        say "this is cargo $have, and rust-toolchain.toml names $channel; going on"
    fi
}

# A stamp holds the digest of what was installed, so that a change of the file installs again.
stamped() { [ -f "$1" ] && [ "$(cat "$1")" = "$2" ]; }

# The packages of a file of requirements, in a virtual environment of .cache.
setup_python() {
    local from=$1 into=.cache/$2 digest stamp=.cache/$2/.stamp
    digest=$(sha256sum "$from" | cut -d' ' -f1)
    if stamped "$stamp" "$digest" && "$into/bin/python" -c '' 2>/dev/null; then return; fi
    say "installing Python packages of $from"
    rm -rf "$into"
    python3 -m venv "$into"
    "$into/bin/python" -m pip install --quiet --disable-pip-version-check --requirement "$from"
    echo "$digest" >"$stamp"
}

setup_node() {
    local digest stamp=.cache/node/.stamp packages
    digest=$(sha256sum tests/demo/package-lock.json | cut -d' ' -f1)
    if stamped "$stamp" "$digest"; then return; fi
    say "installing the MCP servers and Node of tests/demo/package-lock.json"
    rm -rf .cache/node
    mkdir -p .cache/node
    cp tests/demo/package.json tests/demo/package-lock.json .cache/node/
    # No script of a package runs: all that is used has its digest in the lock file. What the script of the package
    # `node` would do, to link the program from the package of this machine's kind, is done here.
    (cd .cache/node && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error)
    packages=(.cache/node/node_modules/node-linux-*/bin/node)
    if [ ! -x "${packages[0]}" ]; then
        echo 'error: there is no Node 22 for this machine; hint: Linux on x64 or arm64' >&2
        exit 1
    fi
    mkdir -p .cache/node/node_modules/node/bin
    ln -f "${packages[0]}" .cache/node/node_modules/node/bin/node
    .cache/node/node_modules/node/bin/node --version | grep -q '^v22\.'
    echo "$digest" >"$stamp"
}

# The packages of a lock file, in a folder of .cache.
setup_packages() {
    local from=$1 into=.cache/$2 digest stamp=.cache/$2/.stamp
    digest=$(sha256sum "$from/package-lock.json" | cut -d' ' -f1)
    if stamped "$stamp" "$digest"; then return; fi
    say "installing the packages of $from/package-lock.json"
    rm -rf "$into"
    mkdir -p "$into"
    cp "$from/package.json" "$from/package-lock.json" "$into/"
    (cd "$into" && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error)
    echo "$digest" >"$stamp"
}

# Its features that have to do with other protocols and telemetry are left out.
setup_mcp_proxy() {
    local version=0.6.0 stamp=.cache/mcp-proxy/.stamp
    if stamped "$stamp" "$version"; then return; fi
    say "compiling mcp-proxy $version"
    cargo install mcp-proxy --version "$version" --locked --no-default-features --features protocol-2026-07-28 \
        --root .cache/mcp-proxy --target-dir "${CARGO_TARGET_DIR:-target}/mcp-proxy" --quiet
    echo "$version" >"$stamp"
}

for group in "$@"; do
    case "$group" in
    build) setup_rust ;;
    python) setup_python tests/requirements.txt venv ;;
    node) setup_node ;;
    examples) setup_packages gateway-shim/examples examples ;;
    conformance) setup_packages tests/conformance conformance ;;
    bench)
        setup_python tests/requirements-bench.txt venv-bench
        setup_mcp_proxy
        ;;
    test) ;;
    *) printf 'error: no group %s; hint: build, python, node, examples, conformance, test, bench\n' "$group" >&2; exit 64 ;;
    esac
done
