#!/bin/sh
# Installs rerun-loader-sam for the current user: Segment Anything in the Rerun viewer.
#
#   ./install.sh                   set everything up
#   ./install.sh demo              set everything up and segment the example photograph
#   ./install.sh test [ARGS...]    set everything up and run the tests; ARGS go to pytest
#   ./install.sh --uninstall       remove it; --purge removes fetched models and settings too
#
# Options: --no-checkpoint (do not fetch vit_b now), --service (also start `rerun-sam watch` at login),
#          --python PROGRAM (the Python to use; 3.11 or newer)
set -eu

NAME=rerun-loader-sam
COMMANDS="rerun-loader-sam rerun-importer-sam rerun-sam"
DATA=${XDG_DATA_HOME:-$HOME/.local/share}/$NAME
BIN=${XDG_BIN_HOME:-$HOME/.local/bin}
ENVIRONMENT=$DATA/venv
CPU_INDEX=https://download.pytorch.org/whl/cpu
OLDEST_SDK=0.23

say() { printf '%s\n' "$*"; }
step() { printf '\n==> %s\n' "$*"; }
fail() {
    printf 'install.sh: %s\n' "$*" >&2
    exit 1
}

main() {
    action=install fetch=yes service=no purge=no python=
    while [ $# -gt 0 ]; do
        case $1 in
        demo) action=demo ;;
        test)
            action="test"
            shift
            break
            ;;
        --uninstall) action=uninstall ;;
        --purge) purge=yes ;;
        --no-checkpoint) fetch=no ;;
        --service) service=yes ;;
        --python)
            [ $# -gt 1 ] || fail "--python needs a program"
            python=$2
            shift
            ;;
        -h | --help)
            usage
            return
            ;;
        *) fail "unknown argument '$1'; ./install.sh --help lists them" ;;
        esac
        shift
    done
    [ -n "${HOME:-}" ] || fail "HOME is not set, so there is no place to install to"
    here=$(cd "$(dirname "$0")" && pwd)

    case $action in
    uninstall)
        uninstall
        return
        ;;
    test) fetch=no ;;
    esac
    [ -f "$here/pyproject.toml" ] || fail "$here holds no $NAME; run install.sh from its folder"

    find_python
    find_viewer
    set_up
    link_commands
    case $action in
    demo) fetch_checkpoint 20 ;;
    install) fetch_checkpoint 0 ;;
    esac
    case $action in
    install) report ;;
    demo) demo ;;
    test) run_tests "$@" ;;
    esac
}

usage() { sed -n '2,11s/^# \{0,1\}//p' "$0"; }

find_python() {
    for candidate in $python python3.13 python3.12 python3.11 python3 python; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            python=$(command -v "$candidate")
            return
        fi
        [ -z "$python" ] || fail "$python is no Python 3.11 or newer"
    done
    fail "no Python 3.11 or newer is on PATH; install one (Debian: apt install python3 python3-venv;
macOS: brew install python) or name it with --python"
}

# The version of the viewer on PATH, so that what the loader sends is what the viewer reads: a newer SDK's
# stream draws warnings in an older viewer, or loses messages.
find_viewer() {
    viewer_version=
    viewer=$(command -v rerun || true)
    case $viewer in
    "" | "$BIN/rerun") return ;;  # none, or the one that an earlier run of this script has linked
    esac
    viewer_version=$(rerun --version 2>/dev/null | sed -n 's/^rerun-cli \([0-9]*\.[0-9]*\.[0-9]*\).*/\1/p' | head -n 1)
}

set_up() {
    step "Setting up $ENVIRONMENT with $("$python" --version)"
    mkdir -p "$DATA"
    if ! "$ENVIRONMENT/bin/python" -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        rm -rf "$ENVIRONMENT"
        "$python" -m venv "$ENVIRONMENT" ||
            fail "$python cannot make an environment; on Debian and Ubuntu: apt install python3-venv"
    fi
    install_torch
    step "Installing $NAME and the Rerun SDK${viewer_version:+ for your viewer, $viewer_version}"
    extra=
    [ "$action" != test ] || extra="[test]"
    sdk="rerun-sdk>=$OLDEST_SDK"
    if [ -n "$viewer_version" ]; then
        if in_environment -c "
import sys
old = tuple(map(int, '$viewer_version'.split('.')[:2])) < tuple(map(int, '$OLDEST_SDK'.split('.')))
sys.exit(not old)"; then
            say "Your viewer, $viewer_version, is older than $OLDEST_SDK: it cannot read what current SDKs write. Update it."
        else
            sdk="rerun-sdk==$viewer_version"
        fi
    fi
    pip_install "$here$extra" "$sdk" ||
        pip_install "$here$extra" "rerun-sdk>=$OLDEST_SDK" ||
        fail "the packages could not be installed; see above, then run this again"
    # The version alone does not tell pip that the folder's contents have changed since the last time.
    pip_install --no-deps --force-reinstall "$here" || fail "$here could not be installed; see above"
}

# Where there is no NVIDIA GPU the CPU build saves gigabytes; where its index cannot be reached, and on macOS,
# the default one has a build that works too.
install_torch() {
    if in_environment -c 'import torch, torchvision' 2>/dev/null; then
        return
    fi
    step "Installing PyTorch"
    if [ "$(uname -s)" = Linux ] && ! has_nvidia_gpu && can_reach "$CPU_INDEX/torch/"; then
        pip_install --index-url "$CPU_INDEX" "torch>=2.3" "torchvision>=0.18" && return
    fi
    pip_install "torch>=2.3" "torchvision>=0.18" || fail "PyTorch could not be installed; see above, then run this again"
}

has_nvidia_gpu() { command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L 2>/dev/null | grep -q GPU; }

can_reach() {
    in_environment -c '
import sys, urllib.request
try:
    urllib.request.urlopen(urllib.request.Request(sys.argv[1], method="HEAD"), timeout=10).close()
except OSError:
    sys.exit(1)' "$1"
}

in_environment() { "$ENVIRONMENT/bin/python" "$@"; }
pip_install() { in_environment -m pip install --quiet --disable-pip-version-check "$@"; }

link_commands() {
    mkdir -p "$BIN"
    linked=$COMMANDS
    if [ -z "$viewer" ] || [ "$viewer" = "$BIN/rerun" ]; then
        linked="$linked rerun"
    fi
    for command in $linked; do
        if [ -e "$BIN/$command" ] && [ ! -L "$BIN/$command" ]; then
            fail "$BIN/$command exists and is not ours; move it away, then run this again"
        fi
        ln -sf "$ENVIRONMENT/bin/$command" "$BIN/$command"
    done
}

# $1: seconds to wait for Meta's server, 0 for as long as it takes.
fetch_checkpoint() {
    [ "$fetch" = yes ] || return 0
    step "Fetching the model vit_b (375 MB, once)"
    if ! can_reach https://dl.fbaipublicfiles.com/segment_anything/sam_vit_b_01ec64.pth; then
        say "Meta's server cannot be reached now. Until it can, the small model that is shipped serves."
        return 0
    fi
    "$ENVIRONMENT/bin/rerun-sam" models fetch vit_b ||
        say "It was not fetched; the small model that is shipped serves until it is."
}

report() {
    if [ "$service" = yes ]; then
        "$ENVIRONMENT/bin/rerun-sam" service install ||
            say "Everything but the service is installed."
    fi
    step "Done"
    say "Installed:  $ENVIRONMENT"
    say "Commands:   $(for command in $linked; do printf '%s ' "$BIN/$command"; done)"
    case :$PATH: in
    *:"$BIN":*) ;;
    *)
        say "PATH:       $BIN is not on your PATH; add this line to your shell's profile, then open a new terminal:"
        say "            export PATH=\"$BIN:\$PATH\""
        ;;
    esac
    say "Next:       rerun-sam view $here/examples/coffee.jpg"
    say "            For what a plain \`rerun\` opens, without asking: run ./install.sh --service, or add to your profile:"
    say "            $("$ENVIRONMENT/bin/rerun-sam" service shell-line)"
    say "            Viewers up to 0.24 need neither; restart one that is open, so that it finds the loader."
    say "Remove:     $here/install.sh --uninstall"
}

demo() {
    step "Segmenting the example photograph"
    PATH=$BIN:$PATH "$ENVIRONMENT/bin/rerun-sam" demo "$here/examples/coffee.jpg"
}

run_tests() {
    step "Running the tests"
    cd "$here"
    PATH=$ENVIRONMENT/bin:$PATH in_environment -m pytest "$@"
}

uninstall() {
    if [ -x "$ENVIRONMENT/bin/rerun-sam" ]; then
        "$ENVIRONMENT/bin/rerun-sam" service remove >/dev/null 2>&1 || true
        "$ENVIRONMENT/bin/rerun-sam" worker stop >/dev/null 2>&1 || true
    fi
    for command in $COMMANDS rerun; do
        case $(readlink "$BIN/$command" 2>/dev/null) in
        "$ENVIRONMENT"/*) rm -f "$BIN/$command" ;;
        esac
    done
    rm -rf "$DATA"
    cache=${XDG_CACHE_HOME:-$HOME/.cache}/$NAME config=${XDG_CONFIG_HOME:-$HOME/.config}/$NAME
    if [ "$(uname -s)" = Darwin ]; then
        cache=${XDG_CACHE_HOME:-$HOME/Library/Caches}/$NAME
        config="${XDG_CONFIG_HOME:-$HOME/Library/Application Support}/$NAME"
    fi
    if [ "$purge" = yes ]; then
        rm -rf "$cache" "$config"
    fi
    say "$NAME is removed."
    for folder in "$cache" "$config"; do
        [ ! -e "$folder" ] || say "Left: $folder (--uninstall --purge removes it too)"
    done
}

main "$@"
