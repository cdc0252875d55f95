#!/bin/sh
# A first step of a CI job on a shared GPU: ends with 1 where 20 GB are not free now, before anything expensive begins.
set -eu

gpuctl config check
gpuctl doctor
gpuctl can-fit 20GB
