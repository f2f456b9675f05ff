#!/bin/sh
# Installs what a Qt window with OpenGL needs on Linux, and Xvfb, the X server without a screen
# that the tests open it on. Does nothing where nothing is missing. Installs with apt, as root or
# with a sudo that asks no password; elsewhere prints the line to run. Fails only where no window
# could open at all: no Xvfb and no display.
set -eu

[ "$(uname -s)" = Linux ] || exit 0
PATH=$PATH:/usr/sbin:/sbin

libraries=$(ldconfig -p)
packages=

# needs NAME PACKAGE: PACKAGE is missing unless the loader knows the library NAME.
needs() {
    case $libraries in
    *"$1 "*) ;;
    *) packages="$packages $2" ;;
    esac
}

command -v Xvfb >/dev/null || packages="$packages xvfb"
command -v xauth >/dev/null || packages="$packages xauth" # for xvfb-run, which only recommends it
needs libGL.so.1 libgl1
needs libEGL.so.1 libegl1
needs libdbus-1.so.3 libdbus-1-3
needs libfontconfig.so.1 libfontconfig1
needs libglib-2.0.so.0 libglib2.0-0
needs libX11-xcb.so.1 libx11-xcb1
needs libxkbcommon.so.0 libxkbcommon0
needs libxkbcommon-x11.so.0 libxkbcommon-x11-0
needs libxcb-cursor.so.0 libxcb-cursor0
needs libxcb-icccm.so.4 libxcb-icccm4
needs libxcb-image.so.0 libxcb-image0
needs libxcb-keysyms.so.1 libxcb-keysyms1
needs libxcb-randr.so.0 libxcb-randr0
needs libxcb-render-util.so.0 libxcb-render-util0
needs libxcb-shape.so.0 libxcb-shape0
needs libxcb-xkb.so.1 libxcb-xkb1
[ -n "$(find /usr/lib /usr/lib64 -maxdepth 3 -path '*/dri/*_dri.so' 2>/dev/null)" ] ||
    packages="$packages libgl1-mesa-dri"
[ -n "$(find /usr/share/fonts /usr/local/share/fonts "${HOME:-/root}/.fonts" \
    -name '*.[ot]tf' 2>/dev/null)" ] || packages="$packages fonts-dejavu-core"

[ -n "$packages" ] || exit 0

if command -v apt-get >/dev/null; then
    if [ "$(id -u)" = 0 ]; then
        sudo=
    elif sudo -n true 2>/dev/null; then
        sudo="sudo -n"
    else
        sudo=none
    fi
    if [ "$sudo" != none ]; then
        echo "Installing for the tests' window:$packages"
        # $sudo and $packages are lists of words.
        # shellcheck disable=SC2086
        if $sudo apt-get update -qq &&
            $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq \
                --no-install-recommends $packages >/dev/null; then
            exit 0
        fi
        echo "apt-get could not install them." >&2
    fi
fi

echo "A Qt window needs system libraries that are missing here; install them, on Debian and" \
    "Ubuntu with:" >&2
echo "    sudo apt-get update && sudo apt-get install -y$packages" >&2
if ! command -v Xvfb >/dev/null && [ -z "${DISPLAY:-}" ]; then
    echo "Without Xvfb and without a display the tests cannot open a window." >&2
    exit 1
fi
