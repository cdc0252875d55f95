#!/bin/sh
# What to do next, depending on the exit code: try again later, try another machine, or call a person.
set -u

gpuctl prepare-phase video --wait 10m
case $? in
    0) exec ./render.sh ;;
    75) echo "the GPU is busy: try again later" >&2; exit 75 ;;
    3) echo "it does not fit on this card: another machine" >&2; exit 3 ;;
    5 | 124) echo "the service does not come up; its log is above" >&2; exit 1 ;;
    *) echo "see above; \`gpuctl doctor\` looks for the cause" >&2; exit 1 ;;
esac
