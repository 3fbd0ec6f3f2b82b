#!/usr/bin/env bash
# Conformance kit and matrix on processors that are not here, by user emulation.
#
#     device_tests/remote/emulate.sh WORK [CPU...]
#
# CPU: cortex-a72 cortex-a76 (arm64), Haswell (AVX2), Nehalem (SSE4.2); all four when none is named.
# Writes WORK/CPU.txt and WORK/CPU.json. Needs a Debian with qemu-user, and edgecodec with its
# runtimes for PYTHON (python3). The arm64 system is made in WORK of Debian packages and wheels of
# the package index; nothing is installed on this machine. With aarch64-linux-gnu-gcc on the path
# (or named by CC_ARM64) the C core is built for it, too. QUALITIES is a list such as 1,60,100.
# TORCH_ARM64 is the torch that arm64 gets, torch==2.10.0.
set -euo pipefail
[ $# -ge 1 ] || { sed -n '2,11s/^# \{0,1\}//p' "$0"; exit 2; }
here=$(cd "$(dirname "$0")/../.." && pwd)
mkdir -p "$1" && work=$(cd "$1" && pwd)
shift
[ $# -ge 1 ] || set -- cortex-a72 cortex-a76 Haswell Nehalem
python=${PYTHON:-python3}
qualities=${QUALITIES:-1,60,100}

emulator() { command -v "qemu-$1-static" || command -v "qemu-$1" ||
    { echo "qemu-$1 is missing: apt install qemu-user-static" >&2; exit 1; }; }

debian_packages() {  # into $work/arm64, with an apt of its own that knows arm64 alone
    local apt=$work/apt root=$work/arm64
    mkdir -p "$apt"/{lists,archives}/partial "$root"
    : > "$apt/status"
    local options=(-qq -o APT::Architecture=arm64 -o APT::Architectures::=arm64
        -o Dir::State::lists="$apt/lists" -o Dir::State::status="$apt/status"
        -o Dir::Cache="$apt" -o Dir::Cache::archives="$apt/archives"
        -o APT::Sandbox::User=root -o Debug::NoLocking=1)
    apt-get "${options[@]}" update
    apt-get "${options[@]}" install -y --download-only --no-install-recommends \
        python3 libstdc++6 libgomp1
    for package in "$apt"/archives/*.deb; do dpkg -x "$package" "$root"; done
}

wheels() {  # into $work/arm64/site, with the edgecodec of this tree
    local version platforms=() tag
    version=$(basename "$work"/arm64/usr/bin/python3.* | tr -dc 0-9)
    for tag in manylinux2014 manylinux_2_27 manylinux_2_28 manylinux_2_31 manylinux_2_35; do
        platforms+=(--platform "${tag}_aarch64")
    done
    "$python" -m pip install -q --upgrade --target "$work/arm64/site" --only-binary=:all: \
        "${platforms[@]}" --implementation cp --python-version "$version" \
        numpy pillow onnxruntime 'openvino>=2024.4' ai-edge-litert \
        filelock fsspec jinja2 networkx sympy typing-extensions
    # Without what it depends on: pip asks this machine's processor, not the wheel's, and would
    # fetch gigabytes for graphics cards. Later wheels of torch for arm64 hold those themselves.
    "$python" -m pip install -q --upgrade --target "$work/arm64/site" --only-binary=:all: \
        "${platforms[@]}" --implementation cp --python-version "$version" --no-deps \
        "${TORCH_ARM64:-torch==2.10.0}"
}

this_tree() {
    local site=$work/arm64/site include
    rm -rf "$site/edgecodec"
    cp -rL "$here/edgecodec" "$site/edgecodec"
    rm -f "$site"/edgecodec/core/*.so
    local compiler=${CC_ARM64:-aarch64-linux-gnu-gcc}
    if command -v "$compiler" > /dev/null; then
        include=$("$python" -c 'import sysconfig; print(sysconfig.get_paths()["include"])')
        # shellcheck disable=SC2086 # CC_ARM64_FLAGS is a list
        "$compiler" ${CC_ARM64_FLAGS:-} -shared -fPIC -nostdlib -std=c99 -O3 -fno-trapping-math \
            -fno-math-errno -ffp-contract=off -I"$include" \
            "$here"/edgecodec/core/{binding,edgecodec_core}.c \
            -o "$site/edgecodec/core/_binding.abi3.so"
    else
        echo "no $compiler: the NumPy coder alone will be used" >&2
    fi
}

arm_view() {  # CPU PART FEATURES: the system as that processor shows it; runtimes read these files
    local view=$work/view-$1 cpu=sys/devices/system/cpu/cpu0/regs/identification
    mkdir -p "$view/proc" "$view/$cpu"
    for folder in etc lib usr; do ln -sfn "$work/arm64/$folder" "$view/$folder"; done
    printf '%s\t: %s\n' processor 0 BogoMIPS 100.00 Features "$3" 'CPU implementer' 0x41 \
        'CPU architecture' 8 'CPU variant' 0x0 'CPU part' "$2" 'CPU revision' 3 \
        > "$view/proc/cpuinfo"
    echo "0x00000000410f${2#0x}3" > "$view/$cpu/midr_el1"
    echo "$view"
}

check() {  # CPU COMMAND...
    local cpu=$1
    shift
    echo "$cpu ..."
    # Not from a source tree, whose edgecodec would come first. No cache: on x86 the system shows the
    # same processor to the emulated and to the real one.
    # What the environment tells OpenBLAS of this machine's processor would crash another.
    (cd "$work" && unset OPENBLAS_CORETYPE &&
        EDGECODEC_CACHE='' OMP_WAIT_POLICY=PASSIVE PYTHONFAULTHANDLER=1 "$@" -m edgecodec \
            device-test --matrix --runs 0 --qualities "$qualities" --threads 1 --json "$cpu.json") \
        > "$work/$cpu.txt" 2> "$work/$cpu.err" || failed="$failed $cpu"
    sed -i "/warning: TCG doesn't support/d" "$work/$cpu.err"  # one for each thread
    tail -n 1 "$work/$cpu.txt"
}

arm_ready=
arm() {  # CPU PART FEATURES
    if [ -z "$arm_ready" ]; then
        [ -d "$work/arm64/usr" ] || debian_packages
        [ -d "$work/arm64/site" ] || wheels
        this_tree
        arm_ready=yes
    fi
    local qemu view
    qemu=$(emulator aarch64)
    view=$(arm_view "$@")
    local without=${EDGECODEC_DISABLE:-}
    # Importing torch ends the process: its wheels need Armv8.2.
    [ "$1" != cortex-a72 ] || without=torch,$without
    check "$1" env EDGECODEC_DISABLE="$without" PYTHONPATH="$work/arm64/site" \
        "$qemu" -cpu "$1" -L "$view" "$work"/arm64/usr/bin/python3
}

x86() {
    local qemu interpreter
    qemu=$(emulator x86_64)
    interpreter=$("$python" -c 'import sys; print(sys.executable)')
    check "$1" env PYTHONPATH="$here" "$qemu" -cpu "$1" "$interpreter"
}

failed=
base="fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid"
for cpu in "$@"; do
    case $cpu in
        cortex-a72) arm "$cpu" 0xd08 "$base" ;;
        cortex-a76) arm "$cpu" 0xd0b "$base atomics fphp asimdhp asimdrdm lrcpc dcpop asimddp" ;;
        Haswell | Nehalem) x86 "$cpu" ;;
        *) echo "$cpu: not a processor this script knows" >&2; exit 2 ;;
    esac
done
[ -z "$failed" ] || { echo "FAILED:$failed" >&2; exit 1; }
