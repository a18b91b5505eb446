#!/bin/sh
# test_tokenize_program.sh PROGRAM DATA: the ids of rqvk-tokenize, and one sentence for each mistake.
program=$1 data=$2 failed=0
errors=$(mktemp)
trap 'rm -f "$errors"' EXIT
expect() { # expect WANTED GOT WHAT
    if [ "$1" != "$2" ]; then
        printf '%s: expected %s, got %s\n' "$3" "$1" "$2"
        failed=1
    fi
}
# ids of llama.cpp's test vectors (ggml-vocab-llama-spm.gguf.out) and of the file's metadata
m=$data/vocab/ggml-vocab-llama-spm.gguf
expect '[15043, 3186]' "$(printf 'Hello world' | "$program" -m "$m")" plain
expect '[1, 15043, 3186]' "$(printf 'Hello world' | "$program" -m "$m" --add-bos)" bos
expect '[1, 15043, 2]' "$(printf '<s>Hello</s>' | "$program" -m "$m")" special
expect '[]' "$("$program" -m "$m" </dev/null)" empty
[ "$(printf '<s>' | "$program" -m "$m" --no-parse-special)" != '[1]' ] || { echo "control token from plain text"; failed=1; }

refuse() { # refuse PART ARGUMENTS...: exit code not 0, one line on standard error that contains PART, no output
    part=$1
    shift
    out=$("$program" "$@" 2>"$errors" </dev/null)
    code=$?
    err=$(cat "$errors")
    lines=$(printf '%s\n' "$err" | wc -l)
    case $err in *"$part"*) found=1 ;; *) found=0 ;; esac
    if [ $code -eq 0 ] || [ $found -eq 0 ] || [ "$lines" -ne 1 ] || [ -n "$out" ]; then
        printf 'refusal of "%s": exit %s, "%s"\n' "$*" $code "$err"
        failed=1
    fi
}
refuse 'no model'
refuse 'nosuchfile.gguf' -m nosuchfile.gguf
refuse "$data" -m "$data"
refuse 'README.md' -m "$data/vocab/README.md"
refuse '--nonsense' -m "$m" --nonsense
exit $failed
