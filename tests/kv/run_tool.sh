#!/bin/sh
# rqvk-kv from end to end on a small model with random weights: capture, calibrate, replay with and without the
# profile, the table for "auto", and what it says when something is wrong. $1 rqvk-kv, $2 rqvk-synth, $3 a folder.
set -eu
kv=$1 synth=$2 dir=$3
rm -rf "$dir"
mkdir -p "$dir"
cd "$dir"
fail() { echo "$1" >&2; exit 1; }
# The exit code and the one sentence of a refusal.
refused() {
    want=$1
    shift
    if "$@" >out.txt 2>err.txt; then fail "not refused: $*"; fi
    [ "$(wc -l <err.txt)" = 1 ] || fail "not one sentence: $(cat err.txt)"
    grep -q "$want" err.txt || fail "another sentence than \"$want\": $(cat err.txt)"
}

"$synth" tiny.gguf --preset tiny-qwen3 >/dev/null
"$synth" other.gguf --preset tiny-qwen3 --seed 2 >/dev/null
i=0
while [ $i -lt 200 ]; do echo "Line $i says that $((i * 7919 % 1000)) is not $((i * 104729 % 1000))."; i=$((i + 1)); done >text.txt

"$kv" capture -m tiny.gguf -f text.txt -o cap --layers 0-1 --tokens 300 2>/dev/null
[ -s cap/manifest.json ] && [ -s cap/layer-000.safetensors ] && [ -s cap/layer-001.safetensors ] || fail "no capture"
"$kv" calibrate -m tiny.gguf -f text.txt -o tiny.prof --window 512 --so8 >report.txt 2>/dev/null
grep -q energy_around_mean report.txt || fail "no report of the calibration"
"$kv" replay cap --formats wht3,so83,f16 --opponent --detail head --json --svg r.svg >plain.json 2>/dev/null
"$kv" replay cap --formats wht3,so83,f16 --profile tiny.prof --table tiny.table --csv >with.csv 2>/dev/null
grep -q '"layer": "1", "head": "0", "format": "wht3", "bits_k": 3.125' plain.json || fail "no row for a head"
grep -q '"layer": "all", "head": "all", "format": "ref-turbo4"' plain.json || fail "no row for an opponent"
grep -q "^all,all,wht3,3.125" with.csv || fail "no row in the CSV"
grep -q "</svg>" r.svg || fail "no drawing"
head -1 tiny.table | grep -q "rqvk-kvtable 1" || fail "no table for auto"
grep -q "^pair wht3 so83 3.125" tiny.table || fail "no pair in the table"
# A learned rotation is a rotation of its own: the profile must have changed what so83 does.
a=$(grep '"layer": "all"' plain.json | grep '"so83"' | sed 's/.*"k_nmse": \([^,]*\),.*/\1/')
b=$(grep "^all,all,so83" with.csv | cut -d, -f6)
[ "$a" != "$b" ] || fail "the profile changed nothing"

"$kv" synth --set all --formats wht2 --heads 1 --keys 128 --queries 4 --csv >synth.csv 2>/dev/null
[ "$(wc -l <synth.csv)" = 8 ] || fail "synth did not measure seven sets"

refused "no command" "$kv" nonsense
refused "no set" "$kv" synth --set nothing
refused "wht9" "$kv" synth --formats wht9
refused "multiple of 8" "$kv" synth --formats ref-turbo3 --dim 100
refused "FOLDER" "$kv" capture -m tiny.gguf -f text.txt
refused "list of layers" "$kv" capture -m tiny.gguf -f text.txt -o cap2 --layers 1,0-
refused "layer" "$kv" capture -m tiny.gguf -f text.txt -o cap2 --layers 7
[ ! -e cap2/manifest.json ] || fail "a failed capture left a manifest"
# What writes over a capture and fails must not leave the old manifest beside new files.
"$kv" capture -m tiny.gguf -f text.txt -o cap3 --layers 0 --tokens 64 2>/dev/null
rm cap3/layer-000.safetensors
mkdir cap3/layer-000.safetensors
refused "layer-000" "$kv" capture -m tiny.gguf -f text.txt -o cap3 --layers 0 --tokens 64
[ ! -e cap3/manifest.json ] || fail "a failed capture left the manifest of the one before"
refused "without columns" "$kv" synth --columns ""
refused "trained context" "$kv" calibrate -m tiny.gguf -f text.txt --window 1000000
refused "none.txt" "$kv" calibrate -m tiny.gguf -f none.txt
refused "folder of a capture" "$kv" replay
refused "manifest.json" "$kv" replay nowhere
"$kv" calibrate -m other.gguf -f text.txt -o other.prof --window 64 --tokens 64 >/dev/null 2>&1
refused "another model" "$kv" replay cap --formats wht3 --profile other.prof
printf 'x' >>cap/manifest.json
refused "JSON" "$kv" replay cap --formats wht3
# Recurrent layers keep nothing: captures and profiles have the others.
"$synth" hybrid.gguf --preset tiny-qwen35 >/dev/null
"$synth" gemma.gguf --preset tiny-gemma4 >/dev/null
"$kv" capture -m hybrid.gguf -f text.txt -o cap-hybrid --tokens 200 2>/dev/null
[ -s cap-hybrid/layer-003.safetensors ] && [ ! -e cap-hybrid/layer-000.safetensors ] || fail "not the layer that attends"
"$kv" replay cap-hybrid --formats wht3,f16 --csv 2>/dev/null | grep -q "^all,all,wht3,3.125" || fail "no row of that layer"
"$kv" calibrate -m hybrid.gguf -f text.txt --window 256 --tokens 512 --klt --csv >report.csv 2>/dev/null
[ "$(cut -d, -f1 report.csv | sort -u | tr '\n' ' ')" = "3 layer " ] || fail "a profile of other layers: $(cat report.csv)"
[ -s hybrid.gguf.kvprofile ] || fail "no profile where programs look for it"
"$kv" replay cap-hybrid --formats wht3,klt3,f16 --profile hybrid.gguf.kvprofile --csv 2>/dev/null | grep -q "^all,all,klt3,3" ||
    fail "no row with a basis"
# Layers that see a window are in a capture, and in a profile if asked for.
"$kv" capture -m gemma.gguf -f text.txt -o cap-gemma --tokens 200 2>/dev/null
grep -q '"layer": 0, .*"window": 64' cap-gemma/manifest.json || fail "no window in the manifest"
"$kv" replay cap-gemma --formats wht3,f16 --csv >gemma.csv 2>/dev/null
grep -q "^all,all,wht3,3.125" gemma.csv || fail "no row of windows"
"$kv" calibrate -m gemma.gguf -f text.txt -o gemma.prof --window 256 --tokens 256 --klt --csv >report.csv 2>/dev/null
grep -q '^[0-9]' report.csv || fail "a profile of no layer"
! grep -q "^0," report.csv || fail "a profile of a layer that sees a window, which nobody asked for"
refused "needs a profile with bases" "$kv" replay cap-gemma --formats klt3 --profile gemma.prof
"$kv" calibrate -m gemma.gguf -f text.txt -o gemma.prof --window 256 --tokens 256 --klt --swa --csv >report.csv 2>/dev/null
grep -q "^0," report.csv || fail "no profile of a layer that sees a window"
"$kv" replay cap-gemma --profile gemma.prof --positions 8 --csv 2>/dev/null | grep -q "^all,all,klt3,3" || fail "no bases of windows"
refused "another model" "$kv" replay cap-gemma --formats wht3 --profile hybrid.gguf.kvprofile
refused "layer 1 is recurrent" "$kv" capture -m hybrid.gguf -f text.txt -o cap4 --layers 1
for command in synth capture replay calibrate; do
    "$kv" $command --help | grep -q "usage: rqvk-kv $command" || fail "no help for $command"
done
