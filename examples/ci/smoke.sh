#!/bin/sh
# A first step for a CI job on a shared GPU: exits with 1 if 20 GB are not free now, before anything expensive begins.
set -eu

gpuctl config check
gpuctl doctor
gpuctl can-fit 20GB
