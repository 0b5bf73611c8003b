#!/bin/sh
# Prints the features that the library is built with, as REKINDLE_FEATURES names them: `folder', `valkey', both with a comma
# between them, or `none'. Both, where it is not set.
set -eu
case ${REKINDLE_FEATURES:-folder,valkey} in
    folder,valkey | valkey,folder) echo folder,valkey ;;
    folder | valkey | none) echo "$REKINDLE_FEATURES" ;;
    *)
        echo "rekindle: REKINDLE_FEATURES is $REKINDLE_FEATURES, and can be folder, valkey, folder,valkey or none" >&2
        exit 1
        ;;
esac
