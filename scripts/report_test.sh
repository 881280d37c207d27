#!/bin/sh
# Looks at the page of runs in headless Chromium: points, types, hides, smooths, saves, prints, asks axe-core for faults, and times
# how long the page of 100,000 steps takes to open.
#
#   scripts/report_test.sh [--shots FOLDER] [RUN...]
#
# Without RUN the runs are made up. It needs `fusedpo` (target/release, or FUSEDPO), node with npm, and chromium on the PATH (Debian:
# apt-get install chromium; or CHROMIUM=FILE). playwright-core and axe-core come from npm once, into
# ${XDG_CACHE_HOME:-~/.cache}/fusedpo/report_test.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
program=${FUSEDPO:-$here/../target/release/fusedpo}
shots=
if [ "${1:-}" = --shots ]; then
    shots=$2
    shift 2
fi
cache=${XDG_CACHE_HOME:-$HOME/.cache}/fusedpo/report_test
mkdir -p "$cache"
if [ ! -d "$cache/node_modules/axe-core" ] || [ ! -d "$cache/node_modules/playwright-core" ]; then
    npm install --silent --no-audit --no-fund --prefix "$cache" playwright-core@1.65.1 axe-core@4.14.1
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
node "$here/report_test/runs.js" "$work"
[ $# -gt 0 ] || set -- "$work/steady" "$work/hasty" "$work/hostile"
"$program" report "$@" --out "$work/page.html"
"$program" report "$1" --out "$work/one.html"
"$program" report "$work/long" --out "$work/long.html"
NODE_PATH="$cache/node_modules" CHROMIUM="${CHROMIUM:-$(command -v chromium)}" node "$here/report_test/look.js" \
    "$work" "$(cat "$cache/node_modules/axe-core/axe.min.js" > "$work/axe.js" && echo "$work/axe.js")" "$shots"
