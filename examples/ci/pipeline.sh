#!/bin/sh
# The pipeline as one script: each step says what it needs, and the first one that cannot have it ends the script
# with gpuctl's exit code. Meanwhile, other pipelines wait in line; each step has the GPU to itself.
set -eu

gpuctl run --phase analysis --wait 1h -- ./analyse.sh
gpuctl run --phase speech --wait 1h -- ./speak.sh
gpuctl run --phase video --wait 1h -- ./render.sh
gpuctl release-all
